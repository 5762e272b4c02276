// Errors of the operators, with messages made only when they are raised.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tokendetr {

template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace tokendetr

// An invalid argument: ValueError in Python.
#define TOKENDETR_CHECK_ARGUMENT(condition, ...)                                      \
  do {                                                                                \
    if (!(condition)) throw std::invalid_argument(::tokendetr::message(__VA_ARGS__)); \
  } while (false)

// A failure at run time: RuntimeError in Python.
#define TOKENDETR_CHECK(condition, ...)                                            \
  do {                                                                             \
    if (!(condition)) throw std::runtime_error(::tokendetr::message(__VA_ARGS__)); \
  } while (false)
