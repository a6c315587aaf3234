// The engine as a whole: the optimizer, memory, and staying usable after errors.
#include "tests/support/error_code.h"
#include "tests/support/in_turn.h"
#include "tests/support/test_model.h"

using namespace testing;

TEST_CASE("an optimizer step moves LoRA as AdamW does, and training lowers the loss") {
  TestModel model({.qkv_bias = true});
  const auto engine = model.engine(DType::f32, 1, {2}, 0);
  const MicroBatch batch = model.batch({9, 12});
  const double before = forward_all(*engine, 2, batch).loss_sum;
  backward_all(*engine, 2, 0);
  const std::vector<double> squares = engine->grad_squares();
  const std::vector<std::string> names = lora_modules(*engine);
  REQUIRE(squares.size() == 2 * names.size());
  for (std::size_t i = 0; i < names.size(); ++i)
    for (const std::size_t m : {0u, 1u}) {
      const auto g = engine->get_matrix(matrix_name(names[i], m == 0 ? LoraMatrix::a : LoraMatrix::b), MatrixPart::grad);
      const Values wide(g.begin(), g.end());
      CHECK(squares[2 * i + m] == doctest::Approx(reference::dot(wide, wide)).epsilon(1e-10));
    }
  const auto w0 = engine->get_matrix(matrix_name(names[0], LoraMatrix::b), MatrixPart::weight), g0 = engine->get_matrix(matrix_name(names[0], LoraMatrix::b), MatrixPart::grad);
  engine->optimizer_step({1, 1e-3, 1.0, 0.9, 0.999, 1e-8, 0.0});
  const auto w1 = engine->get_matrix(matrix_name(names[0], LoraMatrix::b), MatrixPart::weight);
  for (std::size_t i = 0; i < w0.size(); ++i) CHECK(w1[i] == doctest::Approx(w0[i] - 1e-3 * g0[i] / (std::abs(g0[i]) + 1e-8)).epsilon(1e-4));
  for (const auto& [name, values] : gradients(*engine)) CHECK(std::all_of(values.begin(), values.end(), [](float x) { return x == 0; }));
  double after = 0;
  for (int step = 2; step < 8; ++step) {
    after = forward_all(*engine, 2, batch).loss_sum;
    backward_all(*engine, 2, 0);
    engine->optimizer_step({step, 1e-2, 1.0, 0.9, 0.999, 1e-8, 0.0});
  }
  CHECK(after < before);
}

TEST_CASE("gradients of two replicas, added outside, are those of one engine that saw both micro-batches") {
  TestModel model({});
  const MicroBatch a = model.batch({9}, 0), b = model.batch({12}, 1);
  const auto one = model.engine(DType::f32, 1, {}, 0);
  std::vector<std::vector<float>> halves;
  for (const MicroBatch* batch : {&a, &b}) {
    const auto replica = model.engine(DType::f32, 1, {}, 0);
    for (Engine* engine : {one.get(), replica.get()}) {
      forward_all(*engine, 1, *batch);
      backward_all(*engine, 1, batch->index);
    }
    halves.push_back(replica->gradients());
  }
  std::vector<float> sum = halves[0];
  for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += halves[1][i];
  const auto other = model.engine(DType::f32, 1, {}, 0);
  other->set_gradients(sum);
  const auto expected = gradients(*one), got = gradients(*other);
  REQUIRE(expected.size() == got.size());
  for (const auto& [name, values] : expected)
    for (std::size_t i = 0; i < values.size(); ++i) CHECK(got.at(name)[i] == doctest::Approx(values[i]).epsilon(1e-5));
  CHECK(code_of([&] { other->set_gradients(std::vector<float>(sum.size() + 1)); }) == "PL_TENSOR_MISMATCH");
}

TEST_CASE("gradients add up over micro-batches and are zero after zero_grad") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  const MicroBatch a = model.batch({9}, 0), b = model.batch({12}, 1);
  std::vector<std::map<std::string, std::vector<float>>> parts;
  for (const MicroBatch* batch : {&a, &b}) {
    engine->zero_grad();
    forward_all(*engine, 1, *batch);
    backward_all(*engine, 1, batch->index);
    parts.push_back(gradients(*engine));
  }
  forward_all(*engine, 1, a);
  backward_all(*engine, 1, a.index);
  for (const auto& [name, sum] : gradients(*engine))
    for (std::size_t i = 0; i < sum.size(); ++i) CHECK(sum[i] == doctest::Approx(parts[0].at(name)[i] + parts[1].at(name)[i]).epsilon(1e-4));
}

TEST_CASE("LoRA parts come back as they were set") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  for (const MatrixPart part : {MatrixPart::weight, MatrixPart::grad, MatrixPart::exp_avg, MatrixPart::exp_avg_sq})
    for (const LoraMatrix matrix : {LoraMatrix::a, LoraMatrix::b}) {
      std::vector<float> values(static_cast<std::size_t>(TestModel::kRank * (matrix == LoraMatrix::a ? TestModel::kHidden : TestModel::kFfn)));
      std::iota(values.begin(), values.end(), static_cast<float>(part));
      engine->set_matrix(matrix_name("block0.up", matrix), part, values.data(), values.size());
      CHECK(engine->get_matrix(matrix_name("block0.up", matrix), part) == values);
    }
}

TEST_CASE("an arena that is too small fails with its code and the engine goes on") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0, 40000);
  const MicroBatch large = model.batch({60}, 0), small = model.batch({3}, 1);
  CHECK(code_of([&] { forward_all(*engine, 1, large); }) == "PL_OUT_OF_MEMORY");
  CHECK(engine->arena().used() == 0);
  CHECK(forward_all(*engine, 1, small).loss_sum == doctest::Approx(model.loss(small)).epsilon(2e-6));
  CHECK(engine->arena().used() > 0);
  engine->discard();
  CHECK(engine->arena().used() == 0);
  CHECK(code_of([&] { backward_all(*engine, 1, 1); }) == "PL_ENGINE_FAILED");
  CHECK(engine->memory().arena_peak_bytes <= 40000);
}

TEST_CASE("a loss that is not finite is told with its place, and the engine goes on") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  std::vector<float> b(static_cast<std::size_t>(TestModel::kRank * TestModel::kHidden), NAN);
  engine->set_matrix(matrix_name("block0.down", LoraMatrix::b), MatrixPart::weight, b.data(), b.size());
  const MicroBatch batch = model.batch({7});
  CHECK(forward_all(*engine, 1, batch).not_finite == "NaN, first at token 1 of row 0");
  backward_all(*engine, 1, batch.index);
  CHECK(engine->arena().used() == 0);
  b.assign(b.size(), 0.0f);
  engine->set_matrix(matrix_name("block0.down", LoraMatrix::b), MatrixPart::weight, b.data(), b.size());
  CHECK(forward_all(*engine, 1, batch).not_finite.empty());
}

TEST_CASE("wrong tensors are refused by name, with what was expected and what came") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {2}, 0);
  const MicroBatch batch = model.batch({7});
  CHECK(code_of([&] { engine->forward(1, batch, Buffer()); }) == "PL_TENSOR_MISMATCH");
  std::vector<std::uint8_t> values(3 * TestModel::kHidden * sizeof(float));
  const HostSpan whole{values.data(), values.size()};
  CHECK(code_of([&] { engine->forward(1, batch, engine->write({&whole, 1}, DType::f32, 3, TestModel::kHidden)); }) == "PL_TENSOR_MISMATCH");
  MicroBatch broken = batch;
  broken.tokens[2] = TestModel::kVocab;
  CHECK(code_of([&] { engine->forward(0, broken, Buffer()); }) == "PL_TENSOR_MISMATCH");
  broken = batch;
  broken.cu_seqlens = {0, 5, 4};
  CHECK(code_of([&] { engine->forward(0, broken, Buffer()); }) == "PL_TENSOR_MISMATCH");
  CHECK(code_of([&] { engine->load_weight(0, "norm", {"/nowhere", 0, 4, DType::f32, {1}}, HoldSpec{}); }) == "PL_CHECKPOINT_INVALID");
  CHECK(engine->arena().used() == 0);

  char path[] = "/tmp/pipelora_engine_XXXXXX";
  ::close(::mkstemp(path));
  std::ofstream(path) << std::string(64, 'x');
  std::string message;
  try {
    engine->load_weight(1, "norm", {path, 0, 64, DType::f32, {16}}, HoldSpec{});
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message == "norm: expected [32], got [16]");
  CHECK(code_of([&] { engine->load_weight(1, "norm", {path, 0, 128, DType::f32, {32}}, HoldSpec{}); }) == "PL_CHECKPOINT_INVALID");
  CHECK(code_of([&] { engine->load_weight(1, "norm", {path, ~0ull - 3, 128, DType::f32, {32}}, HoldSpec{}); }) == "PL_CHECKPOINT_INVALID");
  CHECK(code_of([&] { engine->load_weight(1, "norm", {path, 0, 100, DType::f32, {32}}, HoldSpec{}); }) == "PL_CHECKPOINT_INVALID");
  ::unlink(path);
}

TEST_CASE("a cache refuses rows and slots that it has not, and sequences that are not told of whole") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  const std::size_t cache = engine->create_cache(2, 9);
  const auto refused = [&](CachedSequences of, std::vector<std::int32_t> tokens) {
    return code_of([&] { engine->infer(0, cache, of, tokens, Buffer()); }) == "PL_TENSOR_MISMATCH";
  };
  engine->infer(0, cache, {{0, 3}, {1}, {5}, {0}, {3}}, {1, 2, 3}, Buffer());
  CHECK(refused({{0, 2}, {1}, {5}, {3}, {3}}, {4, 5}));           // rows 8 and 9
  CHECK(refused({{0, 1}, {1}, {-1}, {0}, {1}}, {4}));             // before the first row
  CHECK(refused({{0, 1}, {1}, {0}, {-1}, {1}}, {4}));             // fewer than no tokens
  CHECK(refused({{0, 1}, {1}, {2147483647}, {2}, {1}}, {4}));     // more than an int32 counts
  CHECK(refused({{0, 1}, {2}, {0}, {0}, {1}}, {4}));              // no such slot
  CHECK(refused({{0, 1, 2}, {1, 1}, {0, 4}, {0, 0}, {1, 1}}, {4, 5}));
  CHECK(refused({{0, 1, 2}, {0}, {0}, {0}, {1}}, {4, 5}));        // one of two
  CHECK(refused({{0, 1}, {0}, {0}, {0}, {0}}, {4}));              // begun with nothing
  CHECK_NOTHROW(engine->infer(0, cache, {{0, 1}, {1}, {5}, {3}, {3}}, {4}, Buffer()));
  CHECK(code_of([&] { engine->create_cache(1, std::int64_t{1} << 31); }) == "PL_TENSOR_MISMATCH");
}

TEST_CASE("log-probabilities are those of the softmax, the likeliest first") {
  const std::vector<float> logits{1, 3, 3, -100, 2};
  const Drawn drawn = log_probabilities(logits, 4, 3);
  const double whole = std::log(std::exp(1.0) + 2 * std::exp(3.0) + std::exp(-100.0) + std::exp(2.0));
  CHECK(drawn.token == 4);
  CHECK(static_cast<double>(drawn.log_probability) == doctest::Approx(2 - whole));
  REQUIRE(drawn.likeliest.size() == 3);
  CHECK(drawn.likeliest[0].token == 1);
  CHECK(drawn.likeliest[1].token == 2);
  CHECK(drawn.likeliest[2].token == 4);
  CHECK(static_cast<double>(drawn.likeliest[0].log_probability) == doctest::Approx(3 - whole));
}

TEST_CASE("a device that is not there is refused") {
  CHECK(code_of([] { make_cpu_ops(DType::f16, 1); }) == "PL_DEVICE_UNAVAILABLE");
}

TEST_CASE("a tensor goes in and out through pieces of host memory") {
  TestModel model({});
  const auto engine = model.engine(DType::f32, 1, {}, 0);
  std::vector<std::uint8_t> bytes(3 * 5 * 4);
  std::iota(bytes.begin(), bytes.end(), std::uint8_t{1});
  const std::vector<HostSpan> in{{bytes.data(), 28}, {bytes.data() + 28, 0}, {bytes.data() + 28, 32}};
  const Buffer tensor = engine->write(in, DType::f32, 3, 5);
  CHECK(engine->read(tensor) == bytes);
  std::vector<std::uint8_t> copy(bytes.size());
  const std::vector<HostSpan> out{{copy.data(), 4}, {copy.data() + 4, 56}};
  engine->read(tensor, out);
  CHECK(copy == bytes);
  const std::vector<HostSpan> cut{{copy.data(), 2}, {copy.data() + 2, 58}}, small{{copy.data(), 56}};
  CHECK(code_of([&] { engine->read(tensor, cut); }) == "PL_TENSOR_MISMATCH");
  CHECK(code_of([&] { engine->read(tensor, small); }) == "PL_TENSOR_MISMATCH");
  CHECK(code_of([&] { engine->write(small, DType::f32, 3, 5); }) == "PL_TENSOR_MISMATCH");
}
