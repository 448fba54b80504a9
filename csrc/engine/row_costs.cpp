#include "engine/row_costs.h"

#include <algorithm>

namespace pgl {
namespace {

constexpr uint64_t kFirst = 3;   // passes with one row, before it is known what others are measured against
constexpr double kLearn = 0.3, kLearnFromOthers = 0.15;   // shares of a change that is believed at once
constexpr double kMostChange = 2;                         // a pass that took longer was disturbed
constexpr double kNextRow = 0.06;   // of a pass with one row: what another is taken to cost where none was tried
constexpr double kForget = 0.001, kMostForgotten = 0.3;   // per observation, and in all

}  // namespace

void RowCosts::observe(int32_t n_rows, double elapsed_ms) {
    Pass & pass = passes_[static_cast<size_t>(n_rows - 1)];
    const bool changed = last_rows_ != 0 && last_rows_ != n_rows;
    last_rows_ = n_rows;
    pass.tried = ++n_observed_;
    ++pass.n_tried;
    if (changed && pass.ms > 0) {
        const double more = std::clamp(elapsed_ms - pass.ms, 0.0, pass.ms / 2);
        change_ms_ += kLearnFromOthers * (more - change_ms_);
    }
    const double steady = std::max(elapsed_ms - (changed ? change_ms_ : 0), elapsed_ms / 2);
    if (pass.ms <= 0) {
        pass.ms = steady;
        return;
    }
    const double change = std::clamp(steady / pass.ms, 1 / kMostChange, kMostChange) - 1;
    const double learn = std::max(kLearn, 1 / static_cast<double>(pass.n_tried));
    for (Pass & other : passes_) {
        other.ms *= 1 + (&other == &pass ? learn : kLearnFromOthers) * change;
    }
}

double RowCosts::steady_ms(int32_t n_rows) const {
    const auto tried = [&](int32_t n) { return passes_[static_cast<size_t>(n - 1)].ms > 0; };
    const auto believed = [&](int32_t n) {
        const Pass & pass = passes_[static_cast<size_t>(n - 1)];
        const auto age = static_cast<double>(n_observed_ - pass.tried);
        return pass.ms * (1 - std::min(kMostForgotten, kForget * age));
    };
    if (n_rows == 1) {
        // No pass takes less than one with a single row. Without this, one of those that was disturbed would make every
        // draft look like a gain, and then none would run that could mend it. Older passes are no evidence.
        double least = passes_[0].ms;
        for (const Pass & pass : passes_) {
            least = pass.tried > passes_[0].tried ? std::min(least, pass.ms) : least;
        }
        return least;
    }
    if (tried(n_rows)) {
        return believed(n_rows);
    }
    int32_t below = n_rows - 1, above = n_rows + 1;
    while (below > 1 && !tried(below)) {
        --below;
    }
    while (above <= kMaxRows && !tried(above)) {
        ++above;
    }
    const double base = below == 1 ? steady_ms(1) : believed(below);
    if (above <= kMaxRows) {
        return base + (believed(above) - base) * (n_rows - below) / (above - below);
    }
    const double slope = below > 1 ? (base - steady_ms(1)) / (below - 1) : kNextRow * base;
    return base + slope * (n_rows - below);
}

int32_t RowCosts::horizon() const {
    if (passes_[0].n_tried < kFirst) {
        return 0;
    }
    int32_t largest = 0;
    for (int32_t n = 1; n <= kMaxRows; ++n) {
        largest = passes_[static_cast<size_t>(n - 1)].ms > 0 ? n : largest;
    }
    return 2 * largest;
}

double RowCosts::ms(int32_t n_rows) const {
    if (passes_[0].ms <= 0) {
        return 0;
    }
    return steady_ms(n_rows) + (n_rows != last_rows_ ? change_ms_ : 0);
}

}  // namespace pgl
