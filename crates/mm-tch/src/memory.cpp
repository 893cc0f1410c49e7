// Memory under tensors: what tch does not reach.
//
// libtorch keeps a tensor's memory in a storage that all its views share. A storage can be made to refuse: every kernel,
// whatever its dtype, device or library, asks the storage for its address, and a refusing one throws a sentence. It can't
// be made to give again, so memory moves from storage to storage, and who still holds an old one is refused for good.
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <cstring>
#include <exception>
#include <string>

#ifndef _WIN32
#include <dlfcn.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace {

const char *const REFUSAL =
    "this weight is not on the device: a managed model's weights can be used inside its component's run(..) only, a "
    "block's while its lease lives, and views, detach() and clones of them no longer than that";

c10::intrusive_ptr<c10::StorageImpl> empty_storage(size_t bytes, at::Device device) {
  return c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), c10::SymInt((int64_t)bytes),
                                               at::DataPtr(nullptr, device), nullptr, false);
}

void refuse(c10::StorageImpl *storage) {
  storage->release_data_and_set_meta_custom_data_ptr_error_msg_(std::string(REFUSAL));
}

template <typename F> char *protect(F body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error &e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception &e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("an unknown exception");
  }
}

} // namespace

extern "C" {

// A variable and where its bytes lie in its slab.
struct mm_tch_place {
  at::Tensor *variable;
  int64_t offset; // bytes
  int64_t elements;
  int32_t kind;
};

void mm_tch_free(char *message) { free(message); }

// Tells variables apart: those that share this are one.
const void *mm_tch_identity(const at::Tensor *variable) { return variable->unsafeGetTensorImpl(); }

// Takes a variable's memory away, freeing it; from now on it is contiguous, of this kind, and refuses. So does whatever
// shared its storage.
char *mm_tch_detach(at::Tensor *variable, int32_t kind) {
  return protect([&] {
    TORCH_CHECK(variable->defined() && variable->layout() == at::kStrided && variable->has_storage(),
                "only dense tensors can be managed");
    auto type = c10::scalarTypeToTypeMeta(static_cast<at::ScalarType>(kind));
    auto device = variable->device();
    TORCH_CHECK(device.is_cpu(), "only variables on the CPU can be managed");
    auto storage = empty_storage(variable->numel() * type.itemsize(), device);
    refuse(storage.get());
    auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), type);
    impl->set_sizes_contiguous(variable->sizes());
    c10::Storage old = variable->storage();
    variable->set_requires_grad(false);
    variable->unsafeGetTensorImpl()->set_allow_tensor_metadata_change(true);
    variable->set_data(at::Tensor(impl));
    variable->unsafeGetTensorImpl()->set_allow_tensor_metadata_change(true);
    auto *shared = old.unsafeGetStorageImpl();
    at::DataPtr freed = shared->set_data_ptr(at::DataPtr(nullptr, device));
    refuse(shared);
  });
}

// Makes variables views of a slab's memory. All or none.
char *mm_tch_put(const mm_tch_place *places, size_t count, const at::Tensor *memory) {
  return protect([&] {
    const c10::Storage &storage = memory->storage();
    int64_t bytes = storage.nbytes();
    for (size_t i = 0; i < count; ++i) {
      auto *impl = places[i].variable->unsafeGetTensorImpl();
      TORCH_CHECK(!places[i].variable->requires_grad(),
                  "training a managed model is not supported, and one of its weights requires grad");
      TORCH_CHECK(impl->numel() == places[i].elements && impl->is_contiguous() &&
                      static_cast<int32_t>(places[i].variable->scalar_type()) == places[i].kind,
                  "the shape or the kind of a managed weight was changed");
      int64_t size = impl->itemsize();
      TORCH_CHECK(places[i].offset >= 0 && places[i].offset % size == 0 && places[i].offset <= bytes &&
                      places[i].elements <= (bytes - places[i].offset) / size,
                  "a weight lies outside its slab");
    }
    for (size_t i = 0; i < count; ++i) {
      auto *impl = places[i].variable->unsafeGetTensorImpl();
      impl->set_storage_keep_dtype(storage);
      impl->set_storage_offset(places[i].offset / impl->itemsize());
    }
  });
}

// Moves the memory of a flat tensor to a storage of its own. What else shared the former one refuses for good.
char *mm_tch_take(at::Tensor *memory) {
  return protect([&] {
    c10::Storage old = memory->storage();
    auto *shared = old.unsafeGetStorageImpl();
    auto fresh = empty_storage(shared->nbytes(), shared->device());
    at::DataPtr moved = shared->set_data_ptr(at::DataPtr(nullptr, shared->device()));
    fresh->set_data_ptr_noswap(std::move(moved));
    memory->unsafeGetTensorImpl()->set_storage_keep_dtype(c10::Storage(fresh));
    refuse(shared);
  });
}

// Gives what was freed back to the system. glibc keeps large pieces once it has seen one freed, and libtorch allocates with it.
void mm_tch_trim() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

// Loads a library for good, its symbols for all. Null: done.
char *mm_tch_load(const char *path) {
#ifdef _WIN32
  return strdup("not supported on this system");
#else
  return dlopen(path, RTLD_NOW | RTLD_GLOBAL) ? nullptr : strdup(dlerror());
#endif
}

// The file that libtorch's own code was loaded from; null: not known.
char *mm_tch_home() {
#ifdef _WIN32
  return nullptr;
#else
  Dl_info info;
  auto *symbol = reinterpret_cast<void *>(&c10::GetCPUAllocator);
  return dladdr(symbol, &info) && info.dli_fname ? strdup(info.dli_fname) : nullptr;
#endif
}
}
