#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "pipelora/core/arena.h"
#include "pipelora/core/error.h"
#include "tests/support/paper_device.h"

using namespace pipelora;

TEST_CASE("the arena places long-lived tensors low and workspaces high, aligned, and merges what is given back") {
  std::vector<char> memory(1 << 20);
  Arena arena(memory.data(), memory.size());
  Buffer a = arena.tensor("a", DType::f32, 10, 10);
  Buffer b = arena.tensor("b", DType::bf16, 3, 7);
  Buffer w = arena.workspace("w", DType::f32, 1, 1);
  CHECK(a.tensor().data == memory.data());
  CHECK(b.tensor().data == memory.data() + 512);
  CHECK(w.tensor().data == memory.data() + memory.size() - Arena::kAlignment);
  CHECK(arena.used() == 512 + 256 + 256);
  a.reset();
  Buffer again = arena.tensor("again", DType::f32, 8, 16);  // fits the hole exactly
  CHECK(again.tensor().data == memory.data());
  again.reset();
  b.reset();
  w.reset();
  CHECK(arena.used() == 0);
  CHECK(arena.peak() == 1024);
  Buffer all = arena.tensor("everything", DType::u8, 1, 1 << 20);
  CHECK(all.tensor().data == memory.data());
}

TEST_CASE("an arena without room names the tensor, what it wanted and what is free") {
  std::vector<char> memory(1 << 12);
  Arena arena(memory.data(), memory.size());
  Buffer a = arena.tensor("a", DType::f32, 2, 256);
  std::string message, code;
  try {
    arena.tensor("gate and up", DType::f32, 3, 256);
  } catch (const Error& error) {
    message = error.what();
    code = error.code();
  }
  CHECK(code == "PL_OUT_OF_MEMORY");
  for (const char* part : {"gate and up", "[3, 256]", "3072 bytes", "2048 of 4096 free"}) CHECK(message.find(part) != std::string::npos);
  a.reset();
  CHECK_NOTHROW(arena.tensor("gate and up", DType::f32, 3, 256));
}

TEST_CASE("an arena without room shows what lies in it, the largest first") {
  std::vector<char> memory(1 << 13);
  Arena arena(memory.data(), memory.size());
  Buffer small = arena.tensor("targets", DType::i32, 1, 4);
  Buffer one = arena.tensor("gate and up", DType::f32, 2, 256), two = arena.tensor("gate and up", DType::f32, 2, 256);
  std::string message;
  try {
    arena.workspace("SwiGLU's output", DType::f32, 4, 256);
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(message.find("; in it lie\n  4096 bytes: gate and up (2 times)\n  256 bytes: targets") != std::string::npos);
}

TEST_CASE("spare room of an arena is what lies under its peak, in one piece") {
  std::vector<char> memory(1 << 13);
  Arena arena(memory.data(), memory.size());
  CHECK(!arena.spare("scratch", 256, 4096));
  { Buffer once = arena.workspace("once", DType::u8, 1, 3000); }
  Buffer held = arena.tensor("held", DType::u8, 1, 1024);
  CHECK(arena.spare("scratch", 256, 1000).tensor().cols == 768);
  CHECK(!arena.spare("scratch", 4096, 8192));
  CHECK(!arena.spare("scratch", 0, 0));
  Buffer all = arena.spare("scratch", 256, 8192);
  CHECK(all.tensor().cols == 2048);
  CHECK(arena.peak() == 3072);
}

TEST_CASE("moving a buffer moves ownership") {
  std::vector<char> memory(1 << 12);
  Arena arena(memory.data(), memory.size());
  Buffer a = arena.tensor("a", DType::f32, 1, 64);
  Buffer b = std::move(a);
  CHECK(!a);
  b = arena.tensor("c", DType::f32, 1, 64);
  CHECK(arena.used() == 256);
}

TEST_CASE("of tensors that leave and come back, the empty ones come back empty and take no room") {
  std::vector<char> memory(1 << 14);
  Arena arena(memory.data(), memory.size());
  std::vector<Buffer> tensors;
  tensors.push_back(arena.tensor("a", DType::f32, 3, 64));
  tensors.emplace_back();
  tensors.push_back(arena.tensor("b", DType::bf16, 0, 7));
  testing::PaperOffload offloaded(std::move(tensors), arena);
  offloaded.leave();
  CHECK(arena.used() == 0);
  const std::vector<Buffer> back = offloaded.take();
  REQUIRE(back.size() == 3);
  CHECK(back[0].tensor().rows == 3);
  CHECK(!back[1]);
  CHECK(back[2]);
  CHECK(back[2].tensor().cols == 7);
  CHECK(arena.used() == 768 + 256);
}
