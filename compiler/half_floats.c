// Conversions of 16-bit floats by name, which TVM's code refers to wherever it is loaded; a library
// of Apple's has to find them among those it was linked with. The processors of 64-bit Arm convert
// by an instruction.

__attribute__((visibility("hidden"))) float __extendhfsf2(_Float16 value) { return value; }
__attribute__((visibility("hidden"))) _Float16 __truncsfhf2(float value) { return (_Float16)value; }
