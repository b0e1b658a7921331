#pragma once
#include <c10/core/Device.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <mutex>
#include <vector>

namespace moecod {

/// Stream `index` of a GPU for work beside the current stream, the same one at each call: 0 is for uploads, 1 and up
/// are for experts side by side. None of them is another or the stream that was current when it was first asked for. For
/// any threads. Synchronises: never.
inline c10::Stream side_stream(c10::Device device, std::size_t index) {
  static std::mutex mutex;
  static std::map<c10::DeviceIndex, std::vector<c10::Stream>> streams;
  const std::lock_guard lock(mutex);
  std::vector<c10::Stream>& of_device = streams[device.index()];
  const c10::impl::VirtualGuardImpl guard(device.type());
  while (of_device.size() <= index) {
    // LibTorch deals its few streams out in turn, again and again.
    const c10::Stream next = guard.getStreamFromGlobalPool(device);
    const bool taken = next == guard.getStream(device) ||
                       std::find(of_device.begin(), of_device.end(), next) != of_device.end();
    if (!taken || of_device.size() >= 30) of_device.push_back(next);
  }
  return of_device[index];
}

}  // namespace moecod
