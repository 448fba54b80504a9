// RowCosts: what a pass with n rows of one sequence takes, learned from those that ran. Pure.
#pragma once

#include "request.h"

#include <array>
#include <cstdint>

namespace pgl {

class RowCosts {
  public:
    // A pass with `n_rows`, 1..kMaxRows, took so long. All passes grow slower together, with the context and with what
    // else the machine does, so that one says something about the others too.
    void observe(int32_t n_rows, double elapsed_ms);

    // What the next pass would take; 0 = no pass with one row ran yet. What was not tried for long counts as a little
    // cheaper than it was: otherwise a pass that something disturbed would be believed for ever.
    double ms(int32_t n_rows) const;

    // Up to how many rows ms() may be believed: twice as many as were tried; none before the first few passes with one.
    int32_t horizon() const;

    // Of ms(), what the change costs where the pass before had another number of rows.
    double change_ms() const { return change_ms_; }

  private:
    struct Pass {
        double ms = 0;        // 0 = never tried
        uint64_t n_tried = 0;
        uint64_t tried = 0;   // at which observation
    };
    double steady_ms(int32_t n_rows) const;

    std::array<Pass, kMaxRows> passes_;   // by number of rows, from 1
    double change_ms_ = 0;
    int32_t last_rows_ = 0;
    uint64_t n_observed_ = 0;
};

}  // namespace pgl
