// The lists of fields: whole, in order, visited at compile time too; ranges refuse what is beside them.
#include "check.h"
#include "gguf/check.h"
#include "ranges.h"
#include "request.h"

#include <cmath>
#include <type_traits>

using namespace pgl;

namespace {

template <typename T> constexpr size_t n_fields() {
    size_t n = 0;
    visit_fields<T>([&](const auto &...) { ++n; });
    return n;
}

static_assert(n_fields<Usage>() == 5 && n_fields<Timings>() == 4 && n_fields<SamplingParams>() == 29);
static_assert(has_fields<EngineOptions> && has_fields<GgufSummary> && !has_fields<int32_t> && !has_fields<std::string>);

std::string refusal(const SamplingParams & params) {
    try {
        check_ranges(params);
    } catch (const Error & e) {
        return e.details.at("field") + " " + e.details.at("allowed");
    }
    return "";
}

}  // namespace

int main() {
    // The last value of every enum has a word: none is missing from its table.
    CHECK_EQ(std::string(name_of(Task::rank)), "rank");
    CHECK_EQ(std::string(name_of(EventKind::error)), "error");
    CHECK_EQ(std::string(name_of(FinishReason::content_filter)), "content_filter");
    CHECK_EQ(std::string(name_of(Device::gpu)), "gpu");
    CHECK_EQ(std::string(name_of(CacheType::q8_0)), "q8_0");
    CHECK_EQ(std::string(name_of(Speculate::always)), "always");
    CHECK_EQ(names(Task{}).size(), size_t(Task::rank) + 1);
    CHECK_EQ(names(EventKind{}).size(), size_t(EventKind::error) + 1);
    CHECK_EQ(names(FinishReason{}).size(), size_t(FinishReason::content_filter) + 1);

    // A visit reaches the object's own members.
    Usage usage;
    visit_fields(usage, [](const char *, int32_t & member) { member = 7; });
    CHECK_EQ(usage.n_prompt + usage.n_cached + usage.n_generated + usage.n_accepted + usage.n_rejected, 35);

    // The ends of a range are in it, what is beside them is not, and NaN is in none.
    CHECK_EQ(refusal({}), "");
    visit_fields<SamplingParams>([](const char * name, auto member, const auto &... about) {
        if constexpr (sizeof...(about) == 1) {
            for (const Range & range : {about...}) {
                SamplingParams params;
                using Number = std::decay_t<decltype(params.*member)>;
                check::context = name;
                params.*member = static_cast<Number>(range.high);
                CHECK_EQ(refusal(params), "");
                params.*member = static_cast<Number>(range.high + 1);
                CHECK_EQ(refusal(params), name + (" " + text_of(range)));
                params.*member = static_cast<Number>(range.low);
                CHECK_EQ(refusal(params), range.above_low ? name + (" " + text_of(range)) : "");
                params.*member = static_cast<Number>(range.low - 1);
                CHECK_EQ(refusal(params), name + (" " + text_of(range)));
                if constexpr (std::is_floating_point_v<Number>) {
                    params.*member = std::nanf("");
                    CHECK_EQ(refusal(params), name + (" " + text_of(range)));
                }
            }
        }
    });
    check::context.clear();
    CHECK_EQ(text_of({-1, 1LL << 44}), "-1..17592186044416");
    CHECK_EQ(text_of({0, 100, true}), "> 0 and <= 100");
    return check::result("fields");
}
