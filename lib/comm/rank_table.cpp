#include "lib/comm/rank_table.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <new>
#include <random>

#include "lib/comm/agree.h"

namespace dstrain {

namespace {

// What a table begins with, so that readers know it; tests read it from outside by these numbers.
struct Header {
  std::uint64_t nonce = 0;
  std::uint32_t rows = 0, row_bytes = sizeof(Whereabouts);
};
constexpr std::size_t kVerdictAt = 64, kRowsAt = 4096;
static_assert(kVerdictAt + sizeof(Verdict) <= kRowsAt);

std::size_t table_bytes(std::size_t rows) { return kRowsAt + rows * sizeof(Whereabouts); }

}  // namespace

void RankTable::map(int descriptor, std::size_t rows) {
  bytes_ = table_bytes(rows);
  struct stat status {};
  if (fstat(descriptor, &status) != 0 || static_cast<std::size_t>(status.st_size) < bytes_) return;
  void* const memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) return;
  descriptor_ = descriptor;
  memory_ = memory;
  verdict_ = reinterpret_cast<Verdict*>(static_cast<std::byte*>(memory) + kVerdictAt);
  rows_ = reinterpret_cast<Whereabouts*>(static_cast<std::byte*>(memory) + kRowsAt);
}

RankTable::RankTable(World& world) : ranks_(world.host_ranks()) {
  const auto create = [&] {
    const int descriptor = memfd_create("dstrain-ranks", MFD_CLOEXEC);
    const bool ok = descriptor >= 0 && ftruncate(descriptor, static_cast<off_t>(table_bytes(ranks_.size()))) == 0;
    if (ok) map(descriptor, ranks_.size());
    require(memory_ != nullptr, ExitCode::device, "rank {}: no memory to share with the ranks of the host",
            world.rank());
    auto* header = new (memory_) Header;
    header->nonce = (static_cast<std::uint64_t>(std::random_device{}()) << 32) | std::random_device{}();
    header->rows = static_cast<std::uint32_t>(ranks_.size());
    new (verdict_) Verdict;
    for (std::size_t i = 0; i < ranks_.size(); ++i) new (&rows_[i]) Whereabouts;
    return header->nonce;
  };
  mine_ = static_cast<std::size_t>(std::find(ranks_.begin(), ranks_.end(), world.rank()) - ranks_.begin());
  if (ranks_.size() > 1) {
    const auto group = world.group(Poster::watchdog, GroupKind::model, ranks_);
    Agreement host(*group);
    std::string place;
    if (mine_ == 0) {
      const std::uint64_t nonce = create();
      place = format("{} /proc/{}/fd/{}", nonce, getpid(), descriptor_);
    }
    place = host.broadcast(place);
    if (mine_ != 0) {
      const auto space = place.find(' ');
      const int descriptor = open(place.c_str() + space + 1, O_RDWR | O_CLOEXEC);
      if (descriptor >= 0) map(descriptor, ranks_.size());
      // A number in another container's /proc may be anybody's.
      if (memory_ && std::to_string(static_cast<const Header*>(memory_)->nonce) != place.substr(0, space)) {
        munmap(memory_, bytes_);
        memory_ = nullptr;
      }
      if (!memory_ && descriptor >= 0) close(descriptor);
    }
    const Index missing = host.sum(static_cast<Index>(memory_ == nullptr ? 1 : 0));
    if (missing > 0) {
      if (memory_) {
        munmap(memory_, bytes_);
        close(descriptor_);
      }
      memory_ = nullptr;
      ranks_ = {world.rank()};
      mine_ = 0;
      create();
    }
  } else {
    create();
  }
  mine().process = getpid();
}

RankTable::~RankTable() {
  if (memory_) munmap(memory_, bytes_);
  if (descriptor_ >= 0) close(descriptor_);
}

}  // namespace dstrain
