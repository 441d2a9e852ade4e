// The masked convolution called from several threads at once, each with threads of its own: for
// ThreadSanitizer.
#include <thread>

#include "conv.h"

namespace metasparse::check {

using namespace cpu;

namespace {

constexpr int kCallers = 3;

// One matrix of active kernels takes half of what is kept of its kind: callers push out each
// other's.
bool run_large_matrix(unsigned seed) {
  const ConvShape shape = conv_shape(1, 1, 460, 460, 1, 1, 3, 3, 1, 1, 1, 1);
  return run_conv_case<float>(shape, {ConvKind::direct, 0}, 0.5, true, seed);
}

// Every caller has all shapes, in an order of its own: two of them with the same masks, which they
// look for at the same time, and one with others.
void call(int caller, const std::vector<ConvShape>& shapes, Count& count) {
  const unsigned seed = caller == 0 ? 2 : 1;
  for (size_t i = 0; i < shapes.size(); ++i) {
    run_conv_shape(shapes[(i + caller / 2) % shapes.size()], seed, count);
  }
  for (unsigned other = 0; other < 2; ++other) count.add(run_large_matrix(seed + other));
}

}  // namespace

static Count run(int draws, unsigned seed) {
  std::vector<ConvShape> shapes = listed_conv_shapes();
  Random random(seed);
  for (int draw = 0; draw < draws; ++draw) shapes.push_back(drawn_conv_shape(random));
  std::vector<Count> counts(kCallers);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] { call(caller, shapes, counts[caller]); });
  }
  for (std::thread& caller : callers) caller.join();
  Count all;
  for (const Count& count : counts) {
    all.cases += count.cases;
    all.failures += count.failures;
  }
  return all;
}

static const Op op("threads", run);

}  // namespace metasparse::check
