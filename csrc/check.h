// What a caller got wrong, with the value.
#pragma once

#include <stdexcept>
#include <string>

namespace {

template <class T>
void check(bool holds, const char* what, T value) {
    if (!holds) throw std::invalid_argument(what + (", got " + std::to_string(value)));
}

}  // namespace
