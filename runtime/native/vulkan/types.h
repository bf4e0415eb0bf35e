// The part of Vulkan's binary interface that is used: types and constants under their names in the
// specification. Declared here rather than included: no headers have to be installed to build this.
//
// Members that nothing reads are gathered in arrays named `unused…`, which only keep the others in
// their places. Each structure starts with its own type, and with zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef _WIN32
#define BITFABRIC_VK __stdcall
#else
#define BITFABRIC_VK
#endif

namespace bitfabric {
namespace vulkan {

// Objects that the loader dispatches on are pointers, all others 64-bit numbers.
using VkInstance = void*;
using VkPhysicalDevice = void*;
using VkDevice = void*;
using VkQueue = void*;
using VkCommandBuffer = void*;
using VkBuffer = uint64_t;
using VkDeviceMemory = uint64_t;
using VkSemaphore = uint64_t;
using VkFence = uint64_t;
using VkCommandPool = uint64_t;
using VkQueryPool = uint64_t;
using VkShaderModule = uint64_t;
using VkPipelineCache = uint64_t;
using VkPipelineLayout = uint64_t;
using VkPipeline = uint64_t;
using VkDescriptorSetLayout = uint64_t;
using VkDescriptorPool = uint64_t;
using VkDescriptorSet = uint64_t;

using VkResult = int32_t;
using VkBool32 = uint32_t;
using VkFlags = uint32_t;
using VkDeviceSize = uint64_t;
using VkDeviceAddress = uint64_t;
using VkStructureType = int32_t;
using VkEnum = int32_t;  // any enumeration
using VkAllocator = const void*;
using VkFunction = void(BITFABRIC_VK*)();

constexpr uint32_t MakeVersion(uint32_t major, uint32_t minor) { return major << 22 | minor << 12; }
constexpr uint32_t kVersion11 = MakeVersion(1, 1);
constexpr uint32_t kVersion12 = MakeVersion(1, 2);
constexpr uint32_t kVersion13 = MakeVersion(1, 3);

enum : VkResult {
  VK_SUCCESS = 0,
  VK_NOT_READY = 1,
  VK_TIMEOUT = 2,
  VK_INCOMPLETE = 5,
  VK_ERROR_OUT_OF_HOST_MEMORY = -1,
  VK_ERROR_OUT_OF_DEVICE_MEMORY = -2,
  VK_ERROR_INITIALIZATION_FAILED = -3,
  VK_ERROR_DEVICE_LOST = -4,
  VK_ERROR_TOO_MANY_OBJECTS = -10,
  VK_ERROR_FRAGMENTED_POOL = -12,
  VK_ERROR_OUT_OF_POOL_MEMORY = -1000069000,
};

enum : VkStructureType {
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2 = 1000059000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES = 1000082000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES = 1000083000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_SUBGROUP_EXTENDED_TYPES_FEATURES = 1000175000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES = 1000177000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES = 1000207000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES = 1000211000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SCALAR_BLOCK_LAYOUT_FEATURES = 1000221000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES = 1000225002,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES = 1000257000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES = 1000280000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_WORKGROUP_MEMORY_EXPLICIT_LAYOUT_FEATURES_KHR = 1000336000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_FEATURES = 1000413000,
  VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR = 1000506000,
};

enum : VkEnum {
  VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU = 1,
  VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU = 2,
  VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU = 3,
  VK_PHYSICAL_DEVICE_TYPE_CPU = 4,
  VK_SEMAPHORE_TYPE_TIMELINE = 1,
  VK_COMMAND_BUFFER_LEVEL_PRIMARY = 0,
  VK_PIPELINE_BIND_POINT_COMPUTE = 1,
  VK_DESCRIPTOR_TYPE_STORAGE_BUFFER = 7,
  VK_QUERY_TYPE_TIMESTAMP = 2,
  VK_SCOPE_SUBGROUP_KHR = 3,
};

enum : VkFlags {
  VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR = 0x1,
  VK_QUEUE_COMPUTE_BIT = 0x2,
  VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT = 0x1,
  VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT = 0x2,
  VK_MEMORY_PROPERTY_HOST_COHERENT_BIT = 0x4,
  VK_MEMORY_PROPERTY_HOST_CACHED_BIT = 0x8,
  VK_MEMORY_HEAP_DEVICE_LOCAL_BIT = 0x1,
  VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT = 0x2,
  VK_BUFFER_USAGE_TRANSFER_SRC_BIT = 0x1,
  VK_BUFFER_USAGE_TRANSFER_DST_BIT = 0x2,
  VK_BUFFER_USAGE_STORAGE_BUFFER_BIT = 0x20,
  VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT = 0x20000,
  VK_COMMAND_POOL_CREATE_TRANSIENT_BIT = 0x1,
  VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT = 0x1,
  VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT = 0x4,
  VK_SHADER_STAGE_COMPUTE_BIT = 0x20,
  VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT = 0x800,
  VK_PIPELINE_STAGE_TRANSFER_BIT = 0x1000,
  VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT = 0x2000,
  VK_PIPELINE_STAGE_HOST_BIT = 0x4000,
  VK_ACCESS_SHADER_READ_BIT = 0x20,
  VK_ACCESS_SHADER_WRITE_BIT = 0x40,
  VK_ACCESS_TRANSFER_READ_BIT = 0x800,
  VK_ACCESS_TRANSFER_WRITE_BIT = 0x1000,
  VK_ACCESS_HOST_READ_BIT = 0x2000,
  VK_QUERY_RESULT_64_BIT = 0x1,
  VK_QUERY_RESULT_WAIT_BIT = 0x2,
  VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT = 0x2,
  VK_SUBGROUP_FEATURE_ARITHMETIC_BIT = 0x4,
  VK_SUBGROUP_FEATURE_BALLOT_BIT = 0x8,
  VK_SUBGROUP_FEATURE_SHUFFLE_BIT = 0x10,
};

constexpr VkDeviceSize VK_WHOLE_SIZE = ~VkDeviceSize{0};

// What every extensible structure begins with.
struct VkBaseStructure {
  VkStructureType sType = 0;
  void* pNext = nullptr;
};

// Instances and devices

struct VkApplicationInfo {
  VkStructureType sType = 0;
  const void* pNext = nullptr;
  const char* pApplicationName = nullptr;
  uint32_t applicationVersion = 0;
  const char* pEngineName = nullptr;
  uint32_t engineVersion = 0;
  uint32_t apiVersion = 0;
};

struct VkInstanceCreateInfo {
  VkStructureType sType = 1;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  const VkApplicationInfo* pApplicationInfo = nullptr;
  uint32_t enabledLayerCount = 0;
  const char* const* ppEnabledLayerNames = nullptr;
  uint32_t enabledExtensionCount = 0;
  const char* const* ppEnabledExtensionNames = nullptr;
};

struct VkExtensionProperties {
  char extensionName[256];
  uint32_t specVersion;
};

struct VkPhysicalDeviceLimits {
  uint32_t unusedImages[7];
  uint32_t maxStorageBufferRange;
  uint32_t maxPushConstantsSize;
  uint32_t maxMemoryAllocationCount;
  uint32_t unusedSamplers;
  VkDeviceSize unusedSparse[2];
  uint32_t unusedDescriptors[3];
  uint32_t maxPerStageDescriptorStorageBuffers;
  uint32_t unusedStages[34];
  uint32_t maxComputeSharedMemorySize;
  uint32_t maxComputeWorkGroupCount[3];
  uint32_t maxComputeWorkGroupInvocations;
  uint32_t maxComputeWorkGroupSize[3];
  uint32_t unusedViewports[13];
  size_t unusedAlignment;
  VkDeviceSize unusedAlignments[2];
  VkDeviceSize minStorageBufferOffsetAlignment;
  uint32_t unusedSamples[22];
  float timestampPeriod;
  uint32_t unusedShapes[12];
  VkDeviceSize unusedCopies[2];
  VkDeviceSize nonCoherentAtomSize;
};

struct VkPhysicalDeviceProperties {
  uint32_t apiVersion;
  uint32_t driverVersion;
  uint32_t vendorID;
  uint32_t deviceID;
  VkEnum deviceType;
  char deviceName[256];
  uint8_t pipelineCacheUUID[16];
  VkPhysicalDeviceLimits limits;
  VkBool32 unusedSparse[5];
};

struct VkPhysicalDeviceProperties2 {
  VkStructureType sType = 1000059001;
  void* pNext = nullptr;
  VkPhysicalDeviceProperties properties{};
};

struct VkPhysicalDeviceSubgroupProperties {
  VkStructureType sType = 1000094000;
  void* pNext = nullptr;
  uint32_t subgroupSize = 0;
  VkFlags supportedStages = 0;
  VkFlags supportedOperations = 0;
  VkBool32 quadOperationsInAllStages = 0;
};

struct VkPhysicalDeviceMaintenance3Properties {
  VkStructureType sType = 1000168000;
  void* pNext = nullptr;
  uint32_t maxPerSetDescriptors = 0;
  VkDeviceSize maxMemoryAllocationSize = 0;
};

struct VkPhysicalDeviceMaintenance4Properties {
  VkStructureType sType = 1000413001;
  void* pNext = nullptr;
  VkDeviceSize maxBufferSize = 0;
};

struct VkPhysicalDeviceDriverProperties {
  VkStructureType sType = 1000196000;
  void* pNext = nullptr;
  VkEnum driverID = 0;
  char driverName[256] = {};
  char driverInfo[256] = {};
  uint8_t conformanceVersion[4] = {};
};

struct VkPhysicalDeviceSubgroupSizeControlProperties {
  VkStructureType sType = 1000225000;
  void* pNext = nullptr;
  uint32_t minSubgroupSize = 0;
  uint32_t maxSubgroupSize = 0;
  uint32_t maxComputeWorkgroupSubgroups = 0;
  VkFlags requiredSubgroupSizeStages = 0;
};

struct VkPhysicalDeviceFloatControlsProperties {
  VkStructureType sType = 1000197000;
  void* pNext = nullptr;
  VkEnum denormBehaviorIndependence = 2;
  VkEnum roundingModeIndependence = 2;
  VkBool32 shaderSignedZeroInfNanPreserve[3] = {};  // of 16, 32 and 64 bits, as are the others
  VkBool32 shaderDenormPreserve[3] = {};
  VkBool32 shaderDenormFlushToZero[3] = {};
  VkBool32 shaderRoundingModeRTE[3] = {};
  VkBool32 shaderRoundingModeRTZ[3] = {};
};

struct VkPhysicalDeviceShaderIntegerDotProductProperties {
  VkStructureType sType = 1000280001;
  void* pNext = nullptr;
  VkBool32 unusedBefore[4] = {};
  VkBool32 integerDotProduct4x8BitPackedSignedAccelerated = 0;
  VkBool32 unusedAfter[25] = {};
};

struct VkCooperativeMatrixPropertiesKHR {
  VkStructureType sType = 1000506001;
  void* pNext = nullptr;
  uint32_t MSize = 0;
  uint32_t NSize = 0;
  uint32_t KSize = 0;
  VkEnum AType = 0;
  VkEnum BType = 0;
  VkEnum CType = 0;
  VkEnum ResultType = 0;
  VkBool32 saturatingAccumulation = 0;
  VkEnum scope = 0;
};

struct VkQueueFamilyProperties {
  VkFlags queueFlags;
  uint32_t queueCount;
  uint32_t timestampValidBits;
  uint32_t minImageTransferGranularity[3];
};

struct VkMemoryType {
  VkFlags propertyFlags;
  uint32_t heapIndex;
};

struct VkMemoryHeap {
  VkDeviceSize size;
  VkFlags flags;
};

struct VkPhysicalDeviceMemoryProperties {
  uint32_t memoryTypeCount;
  VkMemoryType memoryTypes[32];
  uint32_t memoryHeapCount;
  VkMemoryHeap memoryHeaps[16];
};

struct VkDeviceQueueCreateInfo {
  VkStructureType sType = 2;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t queueFamilyIndex = 0;
  uint32_t queueCount = 0;
  const float* pQueuePriorities = nullptr;
};

struct VkDeviceCreateInfo {
  VkStructureType sType = 3;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t queueCreateInfoCount = 0;
  const VkDeviceQueueCreateInfo* pQueueCreateInfos = nullptr;
  uint32_t enabledLayerCount = 0;
  const char* const* ppEnabledLayerNames = nullptr;
  uint32_t enabledExtensionCount = 0;
  const char* const* ppEnabledExtensionNames = nullptr;
  const void* pEnabledFeatures = nullptr;
};

// Memory

struct VkMemoryRequirements {
  VkDeviceSize size;
  VkDeviceSize alignment;
  uint32_t memoryTypeBits;
};

struct VkMemoryAllocateFlagsInfo {
  VkStructureType sType = 1000060000;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t deviceMask = 0;
};

struct VkMemoryAllocateInfo {
  VkStructureType sType = 5;
  const void* pNext = nullptr;
  VkDeviceSize allocationSize = 0;
  uint32_t memoryTypeIndex = 0;
};

struct VkBufferCreateInfo {
  VkStructureType sType = 12;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  VkDeviceSize size = 0;
  VkFlags usage = 0;
  VkEnum sharingMode = 0;
  uint32_t queueFamilyIndexCount = 0;
  const uint32_t* pQueueFamilyIndices = nullptr;
};

struct VkBufferDeviceAddressInfo {
  VkStructureType sType = 1000244001;
  const void* pNext = nullptr;
  VkBuffer buffer = 0;
};

// Commands

struct VkSemaphoreTypeCreateInfo {
  VkStructureType sType = 1000207002;
  const void* pNext = nullptr;
  VkEnum semaphoreType = 0;
  uint64_t initialValue = 0;
};

struct VkSemaphoreCreateInfo {
  VkStructureType sType = 9;
  const void* pNext = nullptr;
  VkFlags flags = 0;
};

struct VkSemaphoreWaitInfo {
  VkStructureType sType = 1000207004;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t semaphoreCount = 0;
  const VkSemaphore* pSemaphores = nullptr;
  const uint64_t* pValues = nullptr;
};

struct VkTimelineSemaphoreSubmitInfo {
  VkStructureType sType = 1000207003;
  const void* pNext = nullptr;
  uint32_t waitSemaphoreValueCount = 0;
  const uint64_t* pWaitSemaphoreValues = nullptr;
  uint32_t signalSemaphoreValueCount = 0;
  const uint64_t* pSignalSemaphoreValues = nullptr;
};

struct VkSubmitInfo {
  VkStructureType sType = 4;
  const void* pNext = nullptr;
  uint32_t waitSemaphoreCount = 0;
  const VkSemaphore* pWaitSemaphores = nullptr;
  const VkFlags* pWaitDstStageMask = nullptr;
  uint32_t commandBufferCount = 0;
  const VkCommandBuffer* pCommandBuffers = nullptr;
  uint32_t signalSemaphoreCount = 0;
  const VkSemaphore* pSignalSemaphores = nullptr;
};

struct VkCommandPoolCreateInfo {
  VkStructureType sType = 39;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t queueFamilyIndex = 0;
};

struct VkCommandBufferAllocateInfo {
  VkStructureType sType = 40;
  const void* pNext = nullptr;
  VkCommandPool commandPool = 0;
  VkEnum level = 0;
  uint32_t commandBufferCount = 0;
};

struct VkCommandBufferBeginInfo {
  VkStructureType sType = 42;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  const void* pInheritanceInfo = nullptr;
};

struct VkMemoryBarrier {
  VkStructureType sType = 46;
  const void* pNext = nullptr;
  VkFlags srcAccessMask = 0;
  VkFlags dstAccessMask = 0;
};

struct VkBufferCopy {
  VkDeviceSize srcOffset;
  VkDeviceSize dstOffset;
  VkDeviceSize size;
};

struct VkQueryPoolCreateInfo {
  VkStructureType sType = 11;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  VkEnum queryType = 0;
  uint32_t queryCount = 0;
  VkFlags pipelineStatistics = 0;
};

// Pipelines

struct VkShaderModuleCreateInfo {
  VkStructureType sType = 16;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  size_t codeSize = 0;
  const uint32_t* pCode = nullptr;
};

struct VkPipelineCacheCreateInfo {
  VkStructureType sType = 17;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  size_t initialDataSize = 0;
  const void* pInitialData = nullptr;
};

// What a pipeline cache's data begins with.
struct VkPipelineCacheHeaderVersionOne {
  uint32_t headerSize;
  uint32_t headerVersion;
  uint32_t vendorID;
  uint32_t deviceID;
  uint8_t pipelineCacheUUID[16];
};

struct VkPushConstantRange {
  VkFlags stageFlags;
  uint32_t offset;
  uint32_t size;
};

struct VkPipelineLayoutCreateInfo {
  VkStructureType sType = 30;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t setLayoutCount = 0;
  const VkDescriptorSetLayout* pSetLayouts = nullptr;
  uint32_t pushConstantRangeCount = 0;
  const VkPushConstantRange* pPushConstantRanges = nullptr;
};

struct VkSpecializationMapEntry {
  uint32_t constantID;
  uint32_t offset;
  size_t size;
};

struct VkSpecializationInfo {
  uint32_t mapEntryCount;
  const VkSpecializationMapEntry* pMapEntries;
  size_t dataSize;
  const void* pData;
};

struct VkPipelineShaderStageRequiredSubgroupSizeCreateInfo {
  VkStructureType sType = 1000225001;
  void* pNext = nullptr;
  uint32_t requiredSubgroupSize = 0;
};

struct VkPipelineShaderStageCreateInfo {
  VkStructureType sType = 18;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  VkFlags stage = 0;
  VkShaderModule module = 0;
  const char* pName = nullptr;
  const VkSpecializationInfo* pSpecializationInfo = nullptr;
};

struct VkComputePipelineCreateInfo {
  VkStructureType sType = 29;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  VkPipelineShaderStageCreateInfo stage;
  VkPipelineLayout layout = 0;
  VkPipeline basePipelineHandle = 0;
  int32_t basePipelineIndex = 0;
};

// Descriptors

struct VkDescriptorSetLayoutBinding {
  uint32_t binding;
  VkEnum descriptorType;
  uint32_t descriptorCount;
  VkFlags stageFlags;
  const void* pImmutableSamplers;
};

struct VkDescriptorSetLayoutCreateInfo {
  VkStructureType sType = 32;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t bindingCount = 0;
  const VkDescriptorSetLayoutBinding* pBindings = nullptr;
};

struct VkDescriptorPoolSize {
  VkEnum type;
  uint32_t descriptorCount;
};

struct VkDescriptorPoolCreateInfo {
  VkStructureType sType = 33;
  const void* pNext = nullptr;
  VkFlags flags = 0;
  uint32_t maxSets = 0;
  uint32_t poolSizeCount = 0;
  const VkDescriptorPoolSize* pPoolSizes = nullptr;
};

struct VkDescriptorSetAllocateInfo {
  VkStructureType sType = 34;
  const void* pNext = nullptr;
  VkDescriptorPool descriptorPool = 0;
  uint32_t descriptorSetCount = 0;
  const VkDescriptorSetLayout* pSetLayouts = nullptr;
};

struct VkDescriptorBufferInfo {
  VkBuffer buffer;
  VkDeviceSize offset;
  VkDeviceSize range;
};

struct VkWriteDescriptorSet {
  VkStructureType sType = 35;
  const void* pNext = nullptr;
  VkDescriptorSet dstSet = 0;
  uint32_t dstBinding = 0;
  uint32_t dstArrayElement = 0;
  uint32_t descriptorCount = 0;
  VkEnum descriptorType = 0;
  const void* pImageInfo = nullptr;
  const VkDescriptorBufferInfo* pBufferInfo = nullptr;
  const void* pTexelBufferView = nullptr;
};

}  // namespace vulkan
}  // namespace bitfabric
