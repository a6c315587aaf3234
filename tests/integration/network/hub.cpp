// A slow, lossy Ethernet hub for network namespaces, where the kernel has no netem: one TAP device "eth0" in each namespace; every
// frame goes to all others after a delay, or is lost. Usage: hub DELAY_MS LOSS NAMESPACE...   ("/run/netns/NAME"; root)
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

struct Frame {
  Clock::time_point due;
  size_t from;
  std::string bytes;
};

[[noreturn]] static void fail(const std::string& what) {
  std::perror(what.c_str());
  std::exit(1);
}

static int openTap(const std::string& netns) {
  const int space = open(("/run/netns/" + netns).c_str(), O_RDONLY);
  if (space < 0 || setns(space, CLONE_NEWNET) != 0) fail(netns);
  close(space);
  const int tap = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
  ifreq request{};
  std::strcpy(request.ifr_name, "eth0");
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (tap < 0 || ioctl(tap, TUNSETIFF, &request) != 0) fail("/dev/net/tun");
  return tap;
}

int main(int argc, char** argv) {
  if (argc < 4) return 1;
  const auto delay = std::chrono::milliseconds(std::atoi(argv[1]));
  const double loss = std::atof(argv[2]);
  std::vector<pollfd> taps;
  for (int i = 3; i < argc; i++) taps.push_back({openTap(argv[i]), POLLIN, 0});
  std::puts("ready");
  std::fflush(stdout);
  std::mt19937 random(1);
  std::uniform_real_distribution<double> chance(0, 1);
  std::deque<Frame> waiting;  // all are delayed alike: the first is the next due
  std::vector<char> buffer(1 << 16);
  for (;;) {
    timespec pause{1, 0};
    if (!waiting.empty()) {
      const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(waiting.front().due - Clock::now()).count();
      pause = {0, left < 0 ? 0 : left};
      if (left >= 1'000'000'000) pause = {1, 0};
    }
    ppoll(taps.data(), taps.size(), &pause, nullptr);
    for (size_t i = 0; i < taps.size(); i++) {
      for (ssize_t size; (size = read(taps[i].fd, buffer.data(), buffer.size())) > 0;) {
        if (chance(random) >= loss) waiting.push_back({Clock::now() + delay, i, {buffer.data(), static_cast<size_t>(size)}});
      }
    }
    for (; !waiting.empty() && waiting.front().due <= Clock::now(); waiting.pop_front()) {
      const Frame& frame = waiting.front();
      for (size_t i = 0; i < taps.size(); i++) {
        // A full queue drops the frame, as a switch would.
        if (i != frame.from && write(taps[i].fd, frame.bytes.data(), frame.bytes.size()) < 0 && errno == EBADF) return 1;
      }
    }
  }
}
