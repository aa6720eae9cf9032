// A shared library to load in front of a program (LD_PRELOAD): host memory runs out at the n-th allocation after main()
// has begun. Allocations are calls of operator new, by whatever C++ in the process, and of mmap for anonymous memory by
// the program itself (its arenas). What C libraries do with a malloc that fails is theirs: malloc is left alone.
//
//   FAILING_MEMORY=n       the n-th fails, once
//   FAILING_MEMORY=n+      and every later one too
//   FAILING_MEMORY=0       none does
//   FAILING_MEMORY_REPORT  a file to append to: the stack of the first failure, and the count when main() returns

#include <dlfcn.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

using Main = int (*)(int, char**, char**);

std::atomic<std::int64_t> calls{0};
std::atomic<bool> counting{false}, told{false};
std::int64_t at = 0;
bool sticky = false;
int report = -1;
std::uintptr_t program_begin = 0, program_end = 0;
Main real_main = nullptr;

bool fails() {
  if (!counting.load(std::memory_order_relaxed)) return false;
  const std::int64_t call = calls.fetch_add(1, std::memory_order_relaxed) + 1;
  if (at == 0 || (sticky ? call < at : call != at)) return false;
  if (!told.exchange(true) && report >= 0) {
    void* frames[64];
    backtrace_symbols_fd(frames, backtrace(frames, 64), report);
  }
  return true;
}

void* allocate(std::size_t bytes, std::size_t alignment) {
  void* p = nullptr;
  if (!fails()) p = alignment == 0 ? std::malloc(bytes ? bytes : 1) : memalign(alignment, bytes ? bytes : 1);
  if (!p) throw std::bad_alloc();
  return p;
}

int counted_main(int argc, char** argv, char** environment) {
  void* frame;
  backtrace(&frame, 1);  // loads what it needs
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void*) {  // the first is the program
        for (int i = 0; i < info->dlpi_phnum; ++i)
          if (info->dlpi_phdr[i].p_type == PT_LOAD)
            program_end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
        program_begin = info->dlpi_addr;
        return 1;
      },
      nullptr);
  if (const char* text = std::getenv("FAILING_MEMORY")) {
    at = std::atoll(text);
    sticky = std::strchr(text, '+') != nullptr;
  }
  if (const char* path = std::getenv("FAILING_MEMORY_REPORT"))
    report = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  unsetenv("LD_PRELOAD");  // what the program starts is not its subject
  counting = true;
  const int code = real_main(argc, argv, environment);
  counting = false;
  if (report >= 0) dprintf(report, "allocations: %lld\n", static_cast<long long>(calls.load()));
  return code;
}

}  // namespace

extern "C" int __libc_start_main(Main main, int argc, char** argv, void (*init)(), void (*fini)(), void (*end)(),
                                 void* stack) {
  real_main = main;
  const auto real = reinterpret_cast<decltype(&__libc_start_main)>(dlsym(RTLD_NEXT, "__libc_start_main"));
  return real(counted_main, argc, argv, init, fini, end, stack);
}

extern "C" void* mmap(void* address, std::size_t length, int protection, int flags, int file, off_t offset) noexcept {
  static const auto real = reinterpret_cast<decltype(&mmap)>(dlsym(RTLD_NEXT, "mmap"));
  const auto caller = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  if ((flags & MAP_ANONYMOUS) && caller >= program_begin && caller < program_end && fails()) {
    errno = ENOMEM;
    return MAP_FAILED;
  }
  return real(address, length, protection, flags, file, offset);
}

void* operator new(std::size_t n) { return allocate(n, 0); }
void* operator new[](std::size_t n) { return allocate(n, 0); }
void* operator new(std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return allocate(n, static_cast<std::size_t>(a)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return fails() ? nullptr : std::malloc(n ? n : 1); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept {
  return fails() ? nullptr : std::malloc(n ? n : 1);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
