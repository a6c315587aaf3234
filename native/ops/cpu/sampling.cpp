#include "ops/cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "pipelora/core/error.h"

namespace pipelora::cpu {

std::int32_t sample(const Sampling& call) {
  float* logits = call.logits.as<float>();
  const std::int64_t vocab = call.logits.cols;
  if (call.repetition_penalty != 1) {
    for (const std::int32_t id : call.seen) {
      float& logit = logits[id];
      logit = logit > 0 ? logit / call.repetition_penalty : logit * call.repetition_penalty;
    }
  }
  for (std::size_t i = 0; i < call.biased.size(); ++i) logits[call.biased[i]] += call.biases[i];
  if (std::any_of(logits, logits + vocab, [](float logit) { return std::isnan(logit); }) || !std::isfinite(*std::max_element(logits, logits + vocab)))
    throw Error(kEngineFailed, "the largest logit is not a finite number: no token can be drawn");

  std::vector<std::int32_t> order(static_cast<std::size_t>(vocab));
  for (std::int64_t id = 0; id < vocab; ++id) order[static_cast<std::size_t>(id)] = static_cast<std::int32_t>(id);
  const auto before = [logits](std::int32_t a, std::int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  if (call.top_k > 0 && call.top_k < vocab) {
    std::nth_element(order.begin(), order.begin() + call.top_k, order.end(), before);
    order.resize(static_cast<std::size_t>(call.top_k));
  }
  const float top = *std::max_element(logits, logits + vocab);
  const auto weight = [&](std::int32_t id) {
    return static_cast<std::uint64_t>(std::exp((static_cast<double>(logits[id]) - static_cast<double>(top)) / call.temperature) * kSamplingUnit);
  };
  std::uint64_t total = 0;
  for (const std::int32_t id : order) total += weight(id);

  // Most of the mass lies in few tokens: a heap gives them one after the other without sorting the rest.
  const auto after = [&](std::int32_t a, std::int32_t b) { return before(b, a); };
  std::make_heap(order.begin(), order.end(), after);
  std::vector<std::int32_t> taken;
  std::vector<std::uint64_t> sums;
  auto end = order.end();
  const auto take = [&] {
    std::pop_heap(order.begin(), end, after);
    taken.push_back(*--end);
    sums.push_back((sums.empty() ? 0 : sums.back()) + weight(taken.back()));
  };
  std::uint64_t left = total;
  if (call.top_p < 1) {
    const auto needed = static_cast<std::uint64_t>(std::ceil(call.top_p * static_cast<double>(total)));
    do take();
    while (end != order.begin() && sums.back() < needed);
    left = sums.back();
  }
  if (call.min_p > 0) {
    const auto least = static_cast<std::uint64_t>(std::ceil(call.min_p * kSamplingUnit));
    if (taken.empty()) take();
    // Everything that top_p left over stands in `taken` already; without it, as much as is likely enough is taken now.
    while (call.top_p >= 1 && end != order.begin() && weight(taken.back()) >= least) take();
    std::size_t kept = 1;
    while (kept < taken.size() && weight(taken[kept]) >= least) ++kept;
    left = sums[kept - 1];
  }
  const auto mark = static_cast<std::uint64_t>(static_cast<unsigned __int128>(left) * call.draw >> 32);
  while (sums.empty() || sums.back() <= mark) take();
  return taken[static_cast<std::size_t>(std::upper_bound(sums.begin(), sums.end(), mark) - sums.begin())];
}

}  // namespace pipelora::cpu
