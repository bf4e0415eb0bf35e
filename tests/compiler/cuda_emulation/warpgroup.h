// Hopper's copies and products for warpgroups, after PTX ISA ("mbarrier", "cp.async.bulk", "wgmma").
// A copy is made when it is asked for; who waits for it too early waits for ever, and who reads
// before it was asked for reads what was there.
#include <map>

struct Phase { int number, expected, arrived; bool told; };
static std::map<void*, Phase> phases;

static void end_phase(Phase& phase) {
  if (phase.told && phase.arrived == phase.expected) phase = {phase.number + 1, 0, 0, false};
}
static void fabric_warpgroup_open(void* barrier) { phases[barrier] = {}; }
static void fabric_warpgroup_expect(void* barrier, int bytes) {
  Phase& phase = phases.at(barrier);
  if (phase.told) abort();
  phase.expected = bytes, phase.told = true;
  end_phase(phase);
}
static void fabric_warpgroup_copy_block(void* place, const void* source, int bytes, void* barrier) {
  memcpy(place, source, bytes);
  phases.at(barrier).arrived += bytes;
  end_phase(phases.at(barrier));
}
static void fabric_warpgroup_await(void* barrier, int parity) {
  while (phases.at(barrier).number % 2 == parity) wait_a_turn();
}
static void fabric_warpgroup_begin() {}
static void fabric_warpgroup_close() {}
static int fabric_warpgroup_aligned(const void* place) {
  return int((0u - unsigned(uintptr_t(place))) & 1023u) >> 4;
}

// Element k of the left factor's row `lane / 4 + 8 upper`, of the words of the warp's threads.
static float left_of(int (*words)[4], int row, int upper, int k, int size) {
  int each = 4 / size, half = k / (4 * each), inner = k % (4 * each);
  int word = words[row * 4 + inner / each][upper + 2 * half], place = inner % each;
  return size == 1 ? float(int8_t(word >> 8 * place)) : half_of(word, place);
}
// Element k of a column of the right factor, whose lines of 128 bytes are in the order of an atom.
static float right_of(const char* place, int column, int k, int size) {
  const char* atom = (const char*)(uintptr_t(place) & ~uintptr_t(1023));
  int byte = int(place - atom) + k * size;
  const char* found = atom + column * 128 + ((byte / 16) ^ (column % 8)) * 16 + byte % 16;
  return size == 1 ? float(*(const int8_t*)found) : float(*(const half*)found);
}
template <int N, class V>
static void multiply(V* sums, int a, int b, int c, int d, const void* right) {
  struct Words { int word[4]; } every[32];
  exchange(Words{{a, b, c, d}}, every);
  int size = sizeof(V) == 4 && std::is_same<V, int>::value ? 1 : 2, lane = current % 32;
  for (int n = 0; n < N / 8; ++n)
    for (int e = 0; e < 4; ++e)
      for (int k = 0; k < 32 / size; ++k) {
        float left = left_of(&every[0].word, lane / 4, e / 2, k, size);
        sums[4 * n + e] += V(left * right_of((const char*)right, 8 * n + lane % 4 * 2 + e % 2, k, size));
      }
}
#define PRODUCT(factors, type, n)                                                               \
  static void fabric_warpgroup_multiply_##factors##_##n(                                        \
      type* sums, int first, int a, int b, int c, int d, const void* right) {                   \
    multiply<n>(sums + first, a, b, c, d, right);                                               \
  }
PRODUCT(s8, int, 64)
PRODUCT(s8, int, 128)
PRODUCT(f16, float, 64)
PRODUCT(f16, float, 128)
#define WAIT(name) static void fabric_warpgroup_##name() {}
WAIT(wait_0)
WAIT(wait_1)
