// What CUDA C++ means on a processor: a work-group's threads take turns on stacks of their own, and
// change where they wait for each other. Tensor cores' products are computed as PTX documents them.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <ucontext.h>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(threads)

typedef _Float16 half;
typedef _Float16 __half;
struct half2 { half x, y; };
struct half4 { half x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Index { int x, y, z; };
static half2 operator-(half2 a, half2 b) { return {half(a.x - b.x), half(a.y - b.y)}; }
static half2 operator*(half2 a, half2 b) { return {half(a.x * b.x), half(a.y * b.y)}; }
static half2 make_half2(half a, half b) { return {a, b}; }
static half4 make_half4(half a, half b, half c, half d) { return {a, b, c, d}; }
static int2 make_int2(int a, int b) { return {a, b}; }
static int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }
static float2 make_float2(float a, float b) { return {a, b}; }
static float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }

template <class To, class From> static To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
static unsigned __pack_half2(half x, half y) { return bits<unsigned>(half2{x, y}); }
static int __float_as_int(float x) { return bits<int>(x); }
static float __int_as_float(int x) { return bits<float>(x); }
static half __float2half_rn(float x) { return half(x); }
static int __float2int_rn(float x) { return int(nearbyintf(x)); }
static int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += int8_t(a >> i) * int8_t(b >> i);
  return c;
}
// The C library has functions of these names, and no others are meant by TVM's.
#define __expf expf
#define __logf logf
#define __log2f log2f
using std::max;
using std::min;
static float max(float a, float b) { return fmaxf(a, b); }
static float min(float a, float b) { return fminf(a, b); }

static int __byte_perm(unsigned low, unsigned high, unsigned selector) {
  uint64_t both = uint64_t(high) << 32 | low;
  unsigned found = 0;
  for (int i = 0; i < 4; ++i) found |= unsigned(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return int(found);
}

static Index threadIdx, blockIdx, blockDim;
static std::vector<ucontext_t> threads;
static std::vector<char> finished;
static ucontext_t turns;
static int current, count, arrived;
static long barriers;
static void (*kernel)();

static void wait_a_turn() {
  swapcontext(&threads[current], &turns);
  threadIdx.x = current;
}
static void __syncthreads() {
  long mine = barriers;
  if (++arrived == count) arrived = 0, ++barriers;
  while (barriers == mine) wait_a_turn();
}

struct Warp { int arrived; long rounds; alignas(16) char values[2][32][64]; };
static Warp warps[32];
// Return what each thread of the warp passes; the last round's values stay for those behind.
template <class V> static void exchange(V mine, V (&every)[32]) {
  static_assert(sizeof(V) <= 64, "of a slot");
  Warp& warp = warps[current / 32];
  long round = warp.rounds;
  memcpy(warp.values[round % 2][current % 32], &mine, sizeof(V));
  if (++warp.arrived == min(32, count)) warp.arrived = 0, ++warp.rounds;
  while (warp.rounds == round) wait_a_turn();
  for (int i = 0; i < 32; ++i) memcpy(&every[i], warp.values[round % 2][i], sizeof(V));
}
template <class V> static V __shfl_xor_sync(unsigned, V value, int distance) {
  V every[32];
  exchange(value, every);
  return every[(current % 32) ^ distance];
}

namespace cuda { namespace std { using ::std::remove_reference_t; } }
// A fragment's order is nobody's business: each thread has all of it.
namespace nvcuda { namespace wmma {
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major };
template <class Role, int M, int N, int K, class E, class Order = void> struct fragment {
  E x[256];
};
template <class F, class E> void fill_fragment(F& f, E value) { for (auto& e : f.x) e = value; }
template <class R, int M, int N, int K, class E, class Order>
void load_matrix_sync(fragment<R, M, N, K, E, Order>& f, const E* p, int stride) {
  bool rows = ::std::is_same<Order, row_major>::value;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) f.x[16 * i + j] = rows ? p[i * stride + j] : p[j * stride + i];
}
template <class F, class E> void store_matrix_sync(E* p, const F& f, int stride, layout_t) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) p[i * stride + j] = f.x[16 * i + j];
}
template <class D, class A, class B> void mma_sync(D& d, const A& a, const B& b, const D& c) {
  D sums = c;
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 16; ++j) sums.x[16 * i + j] += a.x[16 * i + k] * (decltype(c.x[0] + 0))b.x[16 * k + j];
  d = sums;
}
}}

// Our own functions, whose text is PTX. PTX ISA, "mma.m16n8k16" and "ldmatrix".
static float half_of(int word, int i) { return bits<half>(uint16_t(unsigned(word) >> 16 * i)); }
static float4 fabric_fragment_multiply(float4 sums, int4 a, int b, int c) {
  struct Factors { int a[4], b[2]; } every[32];
  exchange(Factors{{a.x, a.y, a.z, a.w}, {b, c}}, every);
  float found[4] = {sums.x, sums.y, sums.z, sums.w};
  int lane = current % 32;
  for (int e = 0; e < 4; ++e) {
    int upper = e / 2, column = lane % 4 * 2 + e % 2;
    for (int k = 0; k < 16; ++k) {
      int thread = k % 8 / 2, half = k / 8;
      float left = half_of(every[lane / 4 * 4 + thread].a[upper + 2 * half], k % 2);
      found[e] += left * half_of(every[column * 4 + thread].b[half], k % 2);
    }
  }
  return {found[0], found[1], found[2], found[3]};
}
static int4 fragment_of(const void* place, bool turned) {
  const uint16_t* rows[32];
  exchange((const uint16_t*)place, rows);
  int found[4], g = current % 32 / 4, t = current % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    const uint16_t** own = rows + 8 * m;
    unsigned low = turned ? own[t][g] : own[g][t], high = turned ? own[t + 1][g] : own[g][t + 1];
    found[m] = int(high << 16 | low);
  }
  return {found[0], found[1], found[2], found[3]};
}
static int4 fabric_fragment_rows(const void* place) { return fragment_of(place, false); }
static int4 fabric_fragment_columns(const void* place) { return fragment_of(place, true); }
static int fabric_half_pair(float x, float y) { return bits<int>(half2{half(x), half(y)}); }
static int fabric_half_pair_rest(float x, float y, int pair) {
  return fabric_half_pair(x - half_of(pair, 0), y - half_of(pair, 1));
}
static float bounded(float x) { return x > 65504 ? 65504 : x < -65504 ? -65504 : x; }
static int fabric_bounded_pair(float x, float y) { return fabric_half_pair(bounded(x), bounded(y)); }
static int fabric_bounded_pair_rest(float x, float y, int pair) {
  return fabric_bounded_pair(x - half_of(pair, 0), y - half_of(pair, 1));
}
static float fabric_exp2(float x) { return x < -126 ? 0 : exp2f(x); }

#include "copies.h"
#include "warpgroup.h"

static void thread_main() {
  threadIdx.x = current;
  kernel();
  finished[current] = 1;
  swapcontext(&threads[current], &turns);
}
static void run_group() {
  static std::vector<std::vector<char>> stacks;
  while (int(stacks.size()) < count) stacks.emplace_back(1 << 17);
  threads.resize(count);
  finished.assign(count, 0);
  memset(warps, 0, sizeof warps);
  copies.assign(count, {{}});
  arrived = 0;
  for (int i = 0; i < count; ++i) {
    getcontext(&threads[i]);
    threads[i].uc_stack.ss_sp = stacks[i].data();
    threads[i].uc_stack.ss_size = stacks[i].size();
    makecontext(&threads[i], thread_main, 0);
  }
  for (bool waiting = true; waiting;) {
    waiting = false;
    for (current = 0; current < count; ++current)
      if (!finished[current]) waiting = true, swapcontext(&turns, &threads[current]);
  }
}
static void run_grid(void (*body)(), int x, int y, int z, int size) {
  kernel = body, count = size, blockDim = {size, 1, 1};
  for (blockIdx.z = 0; blockIdx.z < z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < x; ++blockIdx.x) run_group();
}
