// What threads of Metal do together, done by one processor: a threadgroup's threads take turns, each
// on a stack of its own, and wait in barriers for one another. Where they can never all arrive, the
// kernel is wrong, and the program ends with the sentence that says so.

#pragma once

namespace emulator {

constexpr int kSimd = 32;
constexpr size_t kStack = 256 << 10;

struct Meeting {
  int expected = 0, arrived = 0, turn = 0;
};

// A threadgroup at work.
struct Group {
  explicit Group(int threads)
      : count(threads), contexts(threads), done(threads), values(threads * 8),
        simds((threads + kSimd - 1) / kSimd), stacks(new char[threads * kStack]) {
    everyone.expected = threads;
    for (int i = 0; i < threads; ++i) ++simds[i / kSimd].expected;
  }
  int count, current = 0, idle = 0;
  struct Context {
    jmp_buf jump;
  };
  std::vector<Context> contexts;
  std::vector<char> done;
  std::vector<char> values;
  Meeting everyone;
  std::vector<Meeting> simds;
  std::unique_ptr<char[]> stacks;
  jmp_buf scheduler;
  std::function<void(int)> body;
};

inline Group* group = nullptr;

// Let another thread have its turn.
inline void yield() {
  if (!_setjmp(group->contexts[group->current].jump)) _longjmp(group->scheduler, 1);
}

inline void meet(Meeting& meeting) {
  int turn = meeting.turn;
  if (++meeting.arrived == meeting.expected) {
    meeting.arrived = 0;
    ++meeting.turn;
    group->idle = 0;
    return;
  }
  while (meeting.turn == turn) yield();
}

inline Meeting& own_simd() { return group->simds[group->current / kSimd]; }

// Run a threadgroup: `body(thread)` for each.
inline void run(int threads, const std::function<void(int)>& body) {
  static std::unique_ptr<Group> kept;
  if (!kept || kept->count != threads) kept = std::make_unique<Group>(threads);
  group = kept.get();
  group->body = body;
  std::fill(group->done.begin(), group->done.end(), 0);
  static ucontext_t main_context;
  static volatile int left, next;
  left = threads;
  for (int i = 0; i < threads; ++i) {
    // The first visit of each thread begins its stack; later ones jump to where it was.
    group->current = i;
    if (_setjmp(group->scheduler)) continue;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = group->stacks.get() + i * kStack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, reinterpret_cast<void (*)()>(+[]() {
                  group->body(group->current);
                  group->done[group->current] = 1;
                  --left;
                  group->idle = 0;
                  _longjmp(group->scheduler, 1);
                }), 0);
    setcontext(&context);
  }
  group->idle = 0;
  next = 0;
  _setjmp(group->scheduler);
  while (left) {
    int i = next;
    next = (i + 1) % threads;
    if (group->done[i]) continue;
    if (++group->idle > 2 * threads) {
      std::fprintf(stderr, "The threads of a threadgroup do not all arrive at a barrier.\n");
      std::abort();
    }
    group->current = i;
    _longjmp(group->contexts[i].jump, 1);
  }
}

}  // namespace emulator

namespace metal {

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { emulator::meet(emulator::group->everyone); }
inline void simdgroup_barrier(mem_flags) { emulator::meet(emulator::own_simd()); }

template <typename T, typename F>
T combined(T value, F combine) {
  using namespace emulator;
  int first = group->current / kSimd * kSimd, last = std::min(first + kSimd, group->count);
  T* values = reinterpret_cast<T*>(group->values.data());
  values[group->current] = value;
  meet(own_simd());
  T total = values[first];
  for (int i = first + 1; i < last; ++i) total = combine(total, values[i]);
  meet(own_simd());
  return total;
}
template <typename T, typename = std::enable_if_t<scalar<T>>>
T simd_sum(T value) {
  return combined(value, [](T a, T b) { return a + b; });
}
template <typename T, typename = std::enable_if_t<scalar<T>>>
T simd_max(T value) {
  return combined(value, [](T a, T b) { return max(a, b); });
}

// Every thread holds the whole matrix, though on a device each has two elements of it.
template <typename T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has matrices of 8 by 8");
  T element[Rows][Columns];
};
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;

template <typename T, int Columns, int Rows>
simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> out;
  std::fill_n(&out.element[0][0], Rows * Columns, value);
  return out;
}
template <typename T>
void simdgroup_load(simdgroup_matrix<T, 8, 8>& out, const T* source, ulong pitch = 8,
                    ulong2 origin = ulong2(0), bool transposed = false) {
  emulator::meet(emulator::own_simd());
  for (ulong row = 0; row < 8; ++row)
    for (ulong column = 0; column < 8; ++column) {
      ulong place = transposed ? column * pitch + row : row * pitch + column;
      out.element[row][column] = source[place + origin.y * pitch + origin.x];
    }
}
template <typename T>
void simdgroup_store(const simdgroup_matrix<T, 8, 8>& in, T* place, ulong pitch = 8) {
  for (ulong row = 0; row < 8; ++row)
    for (ulong column = 0; column < 8; ++column) place[row * pitch + column] = in.element[row][column];
  emulator::meet(emulator::own_simd());
}
template <typename T, typename F>
void simdgroup_multiply_accumulate(simdgroup_matrix<T, 8, 8>& out, const simdgroup_matrix<F, 8, 8>& a,
                                   const simdgroup_matrix<F, 8, 8>& b,
                                   const simdgroup_matrix<T, 8, 8>& c) {
  simdgroup_matrix<T, 8, 8> total = c;
  for (int i = 0; i < 8; ++i)
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 8; ++j) total.element[i][j] += T(a.element[i][k]) * T(b.element[k][j]);
  out = total;
}

}  // namespace metal
