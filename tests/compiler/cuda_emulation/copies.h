// Copies that threads ask for, after PTX ISA ("cp.async"): made when they are waited for, no sooner,
// so that who reads too early reads what was there.
struct Copy { void* place; const void* source; };
static std::vector<std::vector<std::vector<Copy>>> copies;  // of each thread, in groups

static void fabric_copy_vector(void* place, const void* source) {
  copies[current].back().push_back({place, source});
}
static void fabric_copy_close() { copies[current].emplace_back(); }
static void wait_copies(size_t left) {
  auto& groups = copies[current];  // the last one is still open
  while (groups.size() - 1 > left) {
    for (const Copy& copy : groups.front()) memcpy(copy.place, copy.source, 16);
    groups.erase(groups.begin());
  }
}
#define WAIT_COPIES(n) static void fabric_copy_wait_##n() { wait_copies(n); }
WAIT_COPIES(0)
WAIT_COPIES(1)
WAIT_COPIES(3)
WAIT_COPIES(5)
