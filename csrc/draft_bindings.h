// What Python calls of drafts.
#pragma once

#include <pybind11/pybind11.h>

// After Decoder, CpuOps and BlockTable.
void bind_drafts(pybind11::module_& m);
