#include "lib/core/hdf5.h"

#include <hdf5.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <exception>
#include <new>
#include <utility>
#include <vector>

#include "lib/core/hdf5_driver.h"

namespace dstrain {

namespace {

constexpr std::size_t kCacheSlots = 521;  // for a few chunks a dataset

class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }  // NOLINT(google-explicit-constructor)

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

// HDF5 keeps one error stack a thread and prints it by default. It would also close at the end of the process what it
// thinks is open, under its lock; ours is closed by its owners.
void quiet() {
  static const herr_t once = H5dont_atexit();
  static_cast<void>(once);
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

herr_t innermost(unsigned, const H5E_error2_t* e, void* text) {
  try {
    if (e->desc) *static_cast<std::string*>(text) = e->desc;
  } catch (const std::bad_alloc&) {  // HDF5 is C and cannot carry it; the message does without these words
  }
  return 1;  // the first is enough
}

// What the file beneath threw, with the code of this file.
[[noreturn]] void rethrow(Hdf5State& state) {
  try {
    std::rethrow_exception(std::exchange(state.error, nullptr));
  } catch (const FileError& e) {
    throw FileError(state.code, e.what(), e.error_number());
  }
}

[[noreturn]] void fail_hdf5(Hdf5State& state, const char* what, const std::string& object) {
  if (state.error) rethrow(state);
  std::string words;
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, &words);
  H5Eclear2(H5E_DEFAULT);
  fail(state.code, "{}: cannot {} '{}'{}{}", state.path, what, object, words.empty() ? "" : ": ", words);
}

// Passes a result on, or throws.
template <class T>
T need(T result, Hdf5State& state, const char* what, const std::string& object) {
  if (result < 0 || state.error) fail_hdf5(state, what, object);
  return result;
}

// A little-endian bfloat16: sign at bit 15, 8 bits of exponent biased by 127, 7 of mantissa.
hid_t make_bf16() {
  const hid_t t = H5Tcopy(H5T_IEEE_F32LE);
  H5Tset_fields(t, 15, 7, 8, 0, 7);
  H5Tset_size(t, 2);
  H5Tset_ebias(t, 127);
  return t;
}

hid_t type_id(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::f32:
      return H5Tcopy(H5T_IEEE_F32LE);
    case Hdf5Type::bf16:
      return make_bf16();
    case Hdf5Type::f64:
      return H5Tcopy(H5T_IEEE_F64LE);
    case Hdf5Type::i32:
      return H5Tcopy(H5T_STD_I32LE);
    case Hdf5Type::i64:
      return H5Tcopy(H5T_STD_I64LE);
    case Hdf5Type::u8:
      return H5Tcopy(H5T_STD_U8LE);
    case Hdf5Type::u16:
      return H5Tcopy(H5T_STD_U16LE);
    case Hdf5Type::u32:
      return H5Tcopy(H5T_STD_U32LE);
    case Hdf5Type::u64:
      return H5Tcopy(H5T_STD_U64LE);
  }
  return -1;
}

constexpr Hdf5Type kTypes[] = {Hdf5Type::f32, Hdf5Type::bf16, Hdf5Type::f64, Hdf5Type::i32, Hdf5Type::i64,
                               Hdf5Type::u8,  Hdf5Type::u16,  Hdf5Type::u32, Hdf5Type::u64};

std::array<hsize_t, Shape::kMaxRank> dims_of(const Shape& shape) {
  std::array<hsize_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); ++i) dims[static_cast<std::size_t>(i)] = static_cast<hsize_t>(shape[i]);
  return dims;
}

// Whole trailing dimensions while they fit, then a part of the next one.
Shape chunk_of(const Shape& shape, std::size_t element, std::size_t chunk_bytes, bool extendible) {
  Shape chunk = shape;
  Index room = std::max<Index>(1, static_cast<Index>(chunk_bytes / element));
  for (int i = shape.rank() - 1; i >= 0; --i) {
    const bool grows = i == 0 && extendible;
    chunk[i] = grows ? room : std::clamp<Index>(shape[i], 1, room);
    room = std::max<Index>(1, room / chunk[i]);
  }
  return chunk;
}

}  // namespace

Hdf5Type hdf5_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Hdf5Type::f32;
    case DType::bf16:
      return Hdf5Type::bf16;
    case DType::f64:
      return Hdf5Type::f64;
    case DType::i32:
      return Hdf5Type::i32;
    case DType::i64:
      return Hdf5Type::i64;
    case DType::u16:
      return Hdf5Type::u16;
    case DType::u8:
      return Hdf5Type::u8;
  }
  return Hdf5Type::u8;
}

std::size_t size_of(Hdf5Type type) {
  switch (type) {
    case Hdf5Type::f64:
    case Hdf5Type::i64:
    case Hdf5Type::u64:
      return 8;
    case Hdf5Type::f32:
    case Hdf5Type::i32:
    case Hdf5Type::u32:
      return 4;
    case Hdf5Type::bf16:
    case Hdf5Type::u16:
      return 2;
    case Hdf5Type::u8:
      return 1;
  }
  return 0;
}

const char* name_of(Hdf5Type type) {
  constexpr const char* names[] = {"f32", "bf16", "f64", "i32", "i64", "u8", "u16", "u32", "u64"};
  return names[static_cast<std::size_t>(type)];
}

// ---- datasets ----

Hdf5Dataset::Hdf5Dataset(Hdf5Dataset&& o) noexcept
    : id_(std::exchange(o.id_, -1)),
      type_(o.type_),
      shape_(o.shape_),
      name_(std::move(o.name_)),
      state_(std::move(o.state_)) {}

Hdf5Dataset& Hdf5Dataset::operator=(Hdf5Dataset&& o) noexcept {
  std::swap(id_, o.id_);
  std::swap(type_, o.type_);
  std::swap(shape_, o.shape_);
  std::swap(name_, o.name_);
  std::swap(state_, o.state_);
  return *this;
}

Hdf5Dataset::~Hdf5Dataset() {
  // After the file was closed, HDF5 has closed the dataset too.
  if (id_ < 0 || !state_->file) return;
  quiet();
  H5Dclose(id_);
}

Shape Hdf5Dataset::origin() const {
  Shape o = shape_;
  for (int i = 0; i < o.rank(); ++i) o[i] = 0;
  return o;
}

// The file's dataspace with the block selected. The caller closes it.
std::int64_t Hdf5Dataset::transfer(const Shape& offset, const Shape& extent, std::size_t bytes) const {
  check(state_ && state_->file, "dataset '{}' used after its file was closed", name_);
  check(offset.rank() == shape_.rank() && extent.rank() == shape_.rank() &&
            static_cast<std::size_t>(extent.numel()) * size_of(type_) == bytes,
        "{}: block {} of {} bytes in a dataset of shape {}", name_, extent.to_string(), bytes, shape_.to_string());
  for (int i = 0; i < shape_.rank(); ++i)
    require(offset[i] >= 0 && extent[i] >= 0 && offset[i] <= shape_[i] && extent[i] <= shape_[i] - offset[i],
            state_->code, "{}: '{}': block {} at {} lies outside {}", state_->path, name_, extent.to_string(),
            offset.to_string(), shape_.to_string());
  quiet();
  const hid_t space = need(H5Dget_space(id_), *state_, "read", name_);
  if (shape_.rank() > 0 && H5Sselect_hyperslab(space, H5S_SELECT_SET, dims_of(offset).data(), nullptr,
                                               dims_of(extent).data(), nullptr) < 0) {
    H5Sclose(space);
    fail_hdf5(*state_, "select in", name_);
  }
  return space;
}

void Hdf5Dataset::read(const Shape& offset, const Shape& extent, std::span<std::byte> memory) const {
  const Handle space(transfer(offset, extent, memory.size()), H5Sclose);
  if (memory.empty()) return;
  const Handle type(type_id(type_), H5Tclose);
  const Handle flat(H5Screate_simple(extent.rank(), dims_of(extent).data(), nullptr), H5Sclose);
  need(H5Dread(id_, type, flat, space, H5P_DEFAULT, memory.data()), *state_, "read", name_);
}

void Hdf5Dataset::write(const Shape& offset, const Shape& extent, std::span<const std::byte> memory) {
  const Handle space(transfer(offset, extent, memory.size()), H5Sclose);
  if (memory.empty()) return;
  const Handle type(type_id(type_), H5Tclose);
  const Handle flat(H5Screate_simple(extent.rank(), dims_of(extent).data(), nullptr), H5Sclose);
  need(H5Dwrite(id_, type, flat, space, H5P_DEFAULT, memory.data()), *state_, "write", name_);
  state_->flush();
}

void Hdf5Dataset::append(Index rows, std::span<const std::byte> memory) {
  check(shape_.rank() > 0, "append to scalar '{}'", name_);
  quiet();
  Shape offset = origin(), extent = shape_;
  offset[0] = shape_[0];
  extent[0] = rows;
  Shape grown = shape_;
  grown[0] += rows;
  need(H5Dset_extent(id_, dims_of(grown).data()), *state_, "extend", name_);
  shape_ = grown;
  write(offset, extent, memory);
}

// ---- files ----

Hdf5File Hdf5File::create(const Files& files, const std::string& path, OpenMode mode) {
  check(mode == OpenMode::create || mode == OpenMode::replace, "an HDF5 file is created or replaced");
  quiet();
  hbool_t safe = false;
  H5is_library_threadsafe(&safe);
  require(safe, ExitCode::device, "this machine's HDF5 library is not thread-safe");
  Hdf5File out;
  out.state_ = std::make_shared<Hdf5State>();
  Hdf5State& state = *out.state_;
  state.path = path;
  state.file = files.open(path, mode);
  const Handle fapl(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  const Handle fcpl(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  need(use_file_driver(fapl, state), state, "create", path);
  H5Pset_libver_bounds(fapl, H5F_LIBVER_LATEST, H5F_LIBVER_LATEST);
  H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG);
  H5Pset_obj_track_times(fcpl, false);
  out.id_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, fcpl, fapl);
  need(out.id_, state, "create", path);
  return out;
}

Hdf5File Hdf5File::open(const Files& files, const std::string& path, ExitCode code, std::size_t cache_bytes) {
  quiet();
  Hdf5File out;
  out.state_ = std::make_shared<Hdf5State>();
  Hdf5State& state = *out.state_;
  state.path = path;
  state.code = code;
  state.cache_bytes = cache_bytes;
  try {
    state.file = files.open(path, OpenMode::read);
    // Older superblocks carry no checksums: damage there could reach HDF5's parser.
    constexpr std::array<unsigned char, 8> kSignature = {0x89, 'H', 'D', 'F', '\r', '\n', 0x1a, '\n'};
    std::array<std::byte, 9> head{};
    require(state.file->size() >= 48, code, "{}: {} bytes, too short for an HDF5 file", path, state.file->size());
    state.file->pread(head, 0);
    require(std::memcmp(head.data(), kSignature.data(), 8) == 0, code, "{}: not an HDF5 file", path);
    const int version = static_cast<int>(head[8]);
    require(version == 2 || version == 3, code,
            "{}: HDF5 superblock version {}; only the checksummed formats 2 and 3 are read", path, version);
  } catch (const FileError& e) {
    throw FileError(code, e.what(), e.error_number());
  }
  const Handle fapl(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  need(use_file_driver(fapl, state), state, "open", path);
  H5Pset_fclose_degree(fapl, H5F_CLOSE_STRONG);
  out.id_ = H5Fopen(path.c_str(), H5F_ACC_RDONLY, fapl);
  need(out.id_, state, "open", path);
  return out;
}

Hdf5File::Hdf5File(Hdf5File&& o) noexcept : id_(std::exchange(o.id_, -1)), state_(std::move(o.state_)) {}

Hdf5File& Hdf5File::operator=(Hdf5File&& o) noexcept {
  std::swap(id_, o.id_);
  std::swap(state_, o.state_);
  return *this;
}

Hdf5File::~Hdf5File() { drop(); }

// Ends HDF5's use of the file, whatever state it is in.
void Hdf5File::drop() noexcept {
  if (!state_) return;
  quiet();
  state_->discard = true;
  if (id_ >= 0) H5Fclose(std::exchange(id_, -1));
  state_->file.reset();
}

std::unique_ptr<File> Hdf5File::close() {
  check(id_ >= 0, "close of an HDF5 file that is not open");
  quiet();
  // A failing H5Fclose leaves the file half open inside HDF5, so that what can fail is done first.
  need(H5Fflush(id_, H5F_SCOPE_GLOBAL), *state_, "write", state_->path);
  state_->flush();
  if (H5Fclose(id_) < 0) {
    state_->discard = true;
    H5Fclose(std::exchange(id_, -1));
    state_->file.reset();
    if (state_->error) rethrow(*state_);
    fail(state_->code, "{}: cannot finish the file", state_->path);
  }
  id_ = -1;
  if (state_->error) rethrow(*state_);
  state_->flush();
  return std::move(state_->file);
}

const std::string& Hdf5File::path() const { return state_->path; }

Hdf5Dataset Hdf5File::create_dataset(const std::string& name, Hdf5Type type, const Shape& shape, bool extendible,
                                     std::size_t chunk_bytes) {
  check(!extendible || shape.rank() > 0, "a scalar cannot be extendible");
  quiet();
  Hdf5State& state = *state_;
  for (std::size_t slash = name.find('/', 1); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string group = name.substr(0, slash);
    if (has(group)) continue;
    const Handle gcpl(H5Pcreate(H5P_GROUP_CREATE), H5Pclose);
    H5Pset_obj_track_times(gcpl, false);
    const Handle made(need(H5Gcreate2(id_, group.c_str(), H5P_DEFAULT, gcpl, H5P_DEFAULT), state, "create", group),
                      H5Gclose);
  }
  auto most = dims_of(shape);
  if (extendible) most[0] = H5S_UNLIMITED;
  const Handle space(H5Screate_simple(shape.rank(), dims_of(shape).data(), most.data()), H5Sclose);
  const Handle file_type(type_id(type), H5Tclose);
  const Handle dcpl(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(dcpl, false);
  H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER);
  if (shape.rank() > 0 && (extendible || shape.numel() > 0)) {
    const Shape chunk = chunk_of(shape, size_of(type), chunk_bytes, extendible);
    need(H5Pset_chunk(dcpl, chunk.rank(), dims_of(chunk).data()), state, "create", name);
    need(H5Pset_fletcher32(dcpl), state, "create", name);
  }
  Hdf5Dataset out;
  out.type_ = type;
  out.shape_ = shape;
  out.name_ = name;
  out.state_ = state_;
  out.id_ =
      need(H5Dcreate2(id_, name.c_str(), file_type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT), state, "create", name);
  return out;
}

Hdf5Dataset Hdf5File::open_dataset(const std::string& name) const {
  quiet();
  Hdf5State& state = *state_;
  const Handle dapl(H5Pcreate(H5P_DATASET_ACCESS), H5Pclose);
  H5Pset_chunk_cache(dapl, kCacheSlots, state.cache_bytes, 1.0);
  Hdf5Dataset out;
  out.state_ = state_;
  out.name_ = name;
  out.id_ = need(H5Dopen2(id_, name.c_str(), dapl), state, "open dataset", name);
  const Handle space(need(H5Dget_space(out.id_), state, "read the shape of", name), H5Sclose);
  const int rank = need(H5Sget_simple_extent_ndims(space), state, "read the shape of", name);
  require(rank <= Shape::kMaxRank, state.code, "{}: '{}' has {} dimensions, at most {} are read", state.path, name,
          rank, Shape::kMaxRank);
  std::array<hsize_t, Shape::kMaxRank> dims{};
  need(H5Sget_simple_extent_dims(space, dims.data(), nullptr), state, "read the shape of", name);
  double numel = 1;
  for (int i = 0; i < rank; ++i) {
    const hsize_t d = dims[static_cast<std::size_t>(i)];
    numel *= static_cast<double>(d);
    require(d < (hsize_t{1} << 48) && numel < 1e15, state.code, "{}: '{}' claims a dimension of {}", state.path, name,
            d);
    out.shape_.push_back(static_cast<Index>(d));
  }
  const Handle type(need(H5Dget_type(out.id_), state, "read the type of", name), H5Tclose);
  for (const Hdf5Type candidate : kTypes) {
    const Handle known(type_id(candidate), H5Tclose);
    if (H5Tequal(type, known) > 0) {
      out.type_ = candidate;
      return out;
    }
  }
  fail(state.code, "{}: '{}' has an element type that is not read", state.path, name);
}

bool Hdf5File::has(const std::string& name) const {
  quiet();
  for (std::size_t slash = name.find('/', 1);; slash = name.find('/', slash + 1)) {
    const std::string part = name.substr(0, slash);
    if (part != "/" && H5Lexists(id_, part.c_str(), H5P_DEFAULT) <= 0) return false;
    if (slash == std::string::npos) return true;
  }
}

std::vector<std::string> Hdf5File::datasets(const std::string& group) const {
  quiet();
  struct Walk {
    std::vector<std::string> names;
    std::exception_ptr error;
  } walk;
  const auto visit = [](hid_t, const char* name, const H5O_info_t* info, void* data) -> herr_t {
    auto& w = *static_cast<Walk*>(data);
    try {
      if (info->type == H5O_TYPE_DATASET) w.names.emplace_back(name);
      return 0;
    } catch (...) {
      w.error = std::current_exception();
      return -1;
    }
  };
  const Handle object(need(H5Oopen(id_, group.c_str(), H5P_DEFAULT), *state_, "open", group), H5Oclose);
  const herr_t rc = H5Ovisit2(object, H5_INDEX_NAME, H5_ITER_INC, visit, &walk, H5O_INFO_BASIC);
  if (walk.error) std::rethrow_exception(walk.error);
  need(rc, *state_, "list", group);
  const std::string prefix = group == "/" ? "" : group + "/";
  for (auto& n : walk.names) n = prefix + n;
  std::sort(walk.names.begin(), walk.names.end());
  return walk.names;
}

void Hdf5File::write_attribute(const std::string& object, const std::string& name, std::int64_t value) {
  quiet();
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(need(H5Acreate_by_name(id_, object.c_str(), name.c_str(), H5T_STD_I64LE, space, H5P_DEFAULT,
                                                H5P_DEFAULT, H5P_DEFAULT),
                              *state_, "write attribute", name),
                         H5Aclose);
  need(H5Awrite(attribute, H5T_NATIVE_INT64, &value), *state_, "write attribute", name);
}

void Hdf5File::write_attribute(const std::string& object, const std::string& name, const std::string& value) {
  quiet();
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, std::max<std::size_t>(1, value.size()));
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  H5Tset_cset(type, H5T_CSET_UTF8);
  const Handle attribute(
      need(H5Acreate_by_name(id_, object.c_str(), name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
           *state_, "write attribute", name),
      H5Aclose);
  const std::string text = value.empty() ? std::string(1, '\0') : value;
  need(H5Awrite(attribute, type, text.data()), *state_, "write attribute", name);
}

std::int64_t Hdf5File::read_integer(const std::string& object, const std::string& name) const {
  quiet();
  const Handle attribute(need(H5Aopen_by_name(id_, object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT), *state_,
                              "read attribute", name),
                         H5Aclose);
  const Handle type(need(H5Aget_type(attribute), *state_, "read attribute", name), H5Tclose);
  const Handle space(need(H5Aget_space(attribute), *state_, "read attribute", name), H5Sclose);
  require(H5Tget_class(type) == H5T_INTEGER && H5Sget_simple_extent_npoints(space) == 1, state_->code,
          "{}: attribute '{}' is not one integer", state_->path, name);
  std::int64_t value = 0;
  need(H5Aread(attribute, H5T_NATIVE_INT64, &value), *state_, "read attribute", name);
  return value;
}

std::string Hdf5File::read_text(const std::string& object, const std::string& name) const {
  constexpr std::size_t kMaxText = 65536;
  quiet();
  const Handle attribute(need(H5Aopen_by_name(id_, object.c_str(), name.c_str(), H5P_DEFAULT, H5P_DEFAULT), *state_,
                              "read attribute", name),
                         H5Aclose);
  const Handle type(need(H5Aget_type(attribute), *state_, "read attribute", name), H5Tclose);
  const Handle space(need(H5Aget_space(attribute), *state_, "read attribute", name), H5Sclose);
  const std::size_t size = H5Tget_size(type);
  require(H5Tget_class(type) == H5T_STRING && H5Tis_variable_str(type) == 0 && size > 0 && size <= kMaxText &&
              H5Sget_simple_extent_npoints(space) == 1,
          state_->code, "{}: attribute '{}' is not a text of fixed length up to {}", state_->path, name, kMaxText);
  std::string value(size, '\0');
  need(H5Aread(attribute, type, value.data()), *state_, "read attribute", name);
  while (!value.empty() && value.back() == '\0') value.pop_back();
  return value;
}

}  // namespace dstrain
