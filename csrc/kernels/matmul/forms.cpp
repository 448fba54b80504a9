// The choice among forms: rules of thumb, or what a short measurement found.
#include "kernels/matmul/forms.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>

#include "kernels/dispatch.h"
#include "kernels/matmul/product.h"

namespace pgl::kernels {
namespace {

/// Of one type and one kind of rows, short or long runs; by the number of tokens.
struct Found {
    std::atomic<bool> valid{false};
    std::array<Form, max_measured_tokens + 1> forms;
};

Found found[n_types][2];
std::mutex measuring;

Found & found_for(Type type, int64_t run) {
    return found[type][run < short_run];
}

Form rule(Type type, int64_t run, int64_t n_tokens) {
    const Isa * isa = active_isa();
    const BlockFormat & format = block_formats[type];
    // A whole line with every load, and every line once, in the order of memory: the hardware's own prefetcher does
    // most of it, or all.
    const bool in_order = isa->lanes == group_rows && type != q5_k;
    if (run < short_run || !in_order) {
        return {isa, Ahead::far};
    }
    // Tokens per bit of a weight, where arithmetic begins to outweigh reading: measured, and little changes around it.
    const bool streaming = n_tokens * format.block * 5 <= format.block_bytes * 8 * 4;
    return {isa, streaming ? Ahead::none : Ahead::near};
}

void fill(Found & entry, Type type, int64_t run) {
    for (int64_t m = 0; m <= max_measured_tokens; ++m) {
        entry.forms[static_cast<size_t>(m)] = rule(type, run, m);
    }
}

/// Row groups per timing: long enough for the clock, short enough that dozens fit a few milliseconds.
constexpr int64_t sample_groups = 32;
constexpr int repetitions = 7;
/// A form other than the rule's must be this much faster: less is noise.
constexpr double margin = 0.95;
/// A form this much slower than the best after two rounds is timed no further.
constexpr double hopeless_ratio = 1.3;
/// Of stand-in weights. What is read twice in less would be found in a cache.
constexpr size_t least_memory = size_t(32) << 20;

/// Times products over one slice of memory after the other.
class Stopwatch {
  public:
    Stopwatch(Type type, int64_t row_length, const uint8_t * memory, size_t size)
        : type_(type), n_blocks_(row_length / block_formats[type].block), memory_(memory) {
        const BlockFormat & format = block_formats[type];
        slice_ = static_cast<size_t>(n_blocks_ * sample_groups) *
                 static_cast<size_t>(format.code_bytes + format.scale_bytes);
        n_slices_ = size / slice_;
        const int64_t words = n_blocks_ * (format.block == 32 ? panel_32::words : panel_256::words);
        activations_.resize(
            static_cast<size_t>(max_measured_tokens * words));   // zeros: the time does not depend on them
        out_.resize(static_cast<size_t>(max_measured_tokens * sample_groups * group_rows));
    }
    size_t n_slices() const { return n_slices_; }

    double seconds(const Form & form, int64_t n_tokens) {
        const BlockFormat & format = block_formats[type_];
        const uint8_t * codes = memory_ + next_++ % n_slices_ * slice_;
        const Planes planes = {type_, n_blocks_, codes, codes + sample_groups * n_blocks_ * format.code_bytes};
        const Product product = {form,
                                 planes,
                                 Panels::of(*form.isa, n_tokens, format.block, n_blocks_),
                                 activations_.data(),
                                 out_.data(),
                                 sample_groups * group_rows};
        const auto start = std::chrono::steady_clock::now();
        multiply_groups(product, 0, sample_groups);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

  private:
    Type type_;
    int64_t n_blocks_;
    const uint8_t * memory_;
    size_t slice_, n_slices_, next_ = 0;
    std::vector<uint32_t> activations_;
    std::vector<float> out_;
};

double median(std::vector<double> & times) {
    std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2), times.end());
    return times[times.size() / 2];
}

}  // namespace

Form form_of(Type type, int64_t run, int64_t n_tokens) {
    const Found & entry = found_for(type, run);
    return n_tokens <= max_measured_tokens && entry.valid.load(std::memory_order_acquire)
               ? entry.forms[static_cast<size_t>(n_tokens)]
               : rule(type, run, n_tokens);
}

std::vector<Form> candidate_forms() {
    std::vector<Form> forms;
    for (const Isa * isa : usable_isas()) {
        for (const Ahead ahead : {Ahead::none, Ahead::near, Ahead::far}) {
            forms.push_back({isa, ahead});
        }
    }
    return forms;
}

void measure_forms(Type type, int64_t row_length, const uint8_t * memory, size_t size) {
    const std::lock_guard<std::mutex> lock(measuring);
    const int64_t run = row_length / block_formats[type].block * block_formats[type].code_bytes;
    Found & entry = found_for(type, run);
    if (entry.valid || size < least_memory || active_isa() == &scalar) {
        return;
    }
    Stopwatch stopwatch(type, row_length, memory, size);
    if (stopwatch.n_slices() < 2) {
        return;
    }
    const auto forms = candidate_forms();
    fill(entry, type, run);
    for (int64_t m = 1; m <= max_measured_tokens; ++m) {
        Form & chosen = entry.forms[static_cast<size_t>(m)];
        std::vector<std::vector<double>> times(forms.size());
        std::vector<bool> hopeless(forms.size());
        for (int round = 0; round < repetitions; ++round) {
            for (size_t i = 0; i < forms.size(); ++i) {
                if (!hopeless[i]) {
                    times[i].push_back(stopwatch.seconds(forms[i], m));
                }
            }
            if (round == 1) {   // most of the time goes to those near each other
                const auto fastest = [](const std::vector<double> & of) {
                    return *std::min_element(of.begin(), of.end());
                };
                double best = fastest(times[0]);
                for (const auto & of : times) {
                    best = std::min(best, fastest(of));
                }
                for (size_t i = 0; i < forms.size(); ++i) {
                    hopeless[i] = fastest(times[i]) > hopeless_ratio * best && !(forms[i] == chosen);
                }
            }
        }
        double least = 0;   // of the rule's own form, until another undercuts it
        for (size_t i = 0; i < forms.size(); ++i) {
            if (forms[i] == chosen) {
                least = margin * median(times[i]);
            }
        }
        for (size_t i = 0; i < forms.size(); ++i) {
            if (const double time = median(times[i]); !hopeless[i] && time < least) {
                least = time;
                chosen = forms[i];
            }
        }
    }
    entry.valid.store(true, std::memory_order_release);
}

void set_form(Type type, int64_t run, int64_t n_tokens, Form form) {
    Found & entry = found_for(type, run);
    if (!entry.valid) {
        fill(entry, type, run);
    }
    entry.forms[static_cast<size_t>(n_tokens)] = form;
    entry.valid = true;
}

void forget_forms() {
    for (auto & of_type : found) {
        for (Found & entry : of_type) {
            entry.valid = false;
        }
    }
}

}  // namespace pgl::kernels
