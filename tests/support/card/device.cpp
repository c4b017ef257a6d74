// What torch lacks without a card for tensors that say they are on "cuda:0": streams that do nothing, and the answer
// that there is such an accelerator. Loaded before torch (LD_PRELOAD), as functions of torch itself give that answer.
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <optional>

namespace {
struct CUDAGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device here() const { return c10::Device(c10::DeviceType::CUDA, 0); }
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, here()); }
  c10::Device exchangeDevice(c10::Device) const override { return here(); }
  c10::Device getDevice() const override { return here(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
const CUDAGuard guard;

struct CUDAHooks final : at::CUDAHooksInterface {
  CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
} // namespace

namespace at {
namespace detail {
const CUDAHooksInterface& getCUDAHooks() {
  static const CUDAHooks hooks{CUDAHooksArgs{}};
  return hooks;
}
} // namespace detail
namespace accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
} // namespace accelerator
} // namespace at

// Called once torch is there, as a build for CUDA has registered its own streams by then.
extern "C" void plug_in() {
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
}
