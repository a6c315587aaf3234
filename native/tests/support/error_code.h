// The code of what a call throws.
#pragma once

#include <string>

#include "pipelora/core/error.h"

namespace testing {

template <class Call>
std::string code_of(Call call) {
  try {
    call();
  } catch (const pipelora::Error& error) {
    return error.code();
  }
  return "no error";
}

}  // namespace testing
