// Drafter, budget, row costs and scheduler together, on a simulated machine: drafts pay where they can, and cost next
// to nothing where they cannot.
#include "check.h"
#include "engine/draft.h"
#include "engine/scheduler.h"

#include <random>
#include <string>

using namespace pgl;

namespace {

using Tokens = std::vector<Token>;

// What a pass takes by its number of rows, for 1, 2, 3, 4, 5, 8 and 16 rows; those between lie between.
struct Machine {
    const char * name;
    double ms[7];
    double change_ms;   // where the number of rows is another than in the pass before
    double noise;       // of each pass, as a share

    double pass(int32_t n_rows) const {
        constexpr int32_t known[7] = {1, 2, 3, 4, 5, 8, 16};
        int i = 0;
        while (known[i] < n_rows) {
            ++i;
        }
        return known[i] == n_rows
                   ? ms[i]
                   : ms[i - 1] + (ms[i] - ms[i - 1]) * (n_rows - known[i - 1]) / (known[i] - known[i - 1]);
    }
};

constexpr Machine machines[] = {
    {"flat", {104, 112, 118, 121, 123, 131, 170}, 0, 0.02},
    {"steep", {210, 240, 280, 333, 440, 590, 1130}, 0, 0.05},
    {"small model", {5.4, 5.9, 7.0, 8.4, 11.4, 15.3, 25.5}, 0.5, 0.1},
    {"odd", {104, 126, 140, 121, 125, 131, 170}, 1, 0.05},
};

// The simulated time of an answer, over that of one token a pass.
double slowdown(const Machine & machine, const Tokens & prompt, const Tokens & answer, uint32_t seed,
                const Tokens & prediction = {}) {
    std::mt19937 random(seed);
    const auto normal = [&] {  // nearly; the library's own differs from one library to another
        double sum = -6;
        for (int i = 0; i < 12; ++i) {
            sum += static_cast<double>(random()) / 4294967296.0;
        }
        return 1 + machine.noise * sum;
    };
    Scheduler scheduler(512);
    Drafter drafter(prompt, prediction);
    DraftBudget budget;
    double with = 0, without = 0;
    int32_t last_rows = 1;
    for (size_t at = 0; at < answer.size();) {
        const Draft & draft = drafter.propose(kMaxRows - 1);
        const Tokens guess = draft.tokens;
        const Running running{0, 0, draft.odds, budget.may_lose_ms(scheduler.alone_ms())};
        const int32_t n_draft = scheduler.plan({running}).n_draft, n_rows = n_draft + 1;
        const double exact = machine.pass(n_rows) + (n_rows == last_rows ? 0 : machine.change_ms);
        last_rows = n_rows;
        with += exact;
        const double elapsed = exact * std::max(0.5, normal());
        scheduler.observe_decode(n_rows, elapsed);
        budget.passed(elapsed);
        int32_t n_tokens = 0;
        bool right = true;
        while (right && n_tokens <= n_draft && at < answer.size()) {
            right = n_tokens < n_draft && guess[static_cast<size_t>(n_tokens)] == answer[at];
            drafter.append(answer[at++]);
            without += machine.pass(1);
            ++n_tokens;
        }
        if (n_draft > 0) {
            scheduler.settle(budget, n_draft, elapsed, n_tokens);
        }
    }
    return with / without;
}

Tokens noise(size_t n, uint32_t seed, int alphabet) {
    std::mt19937 random(seed);
    Tokens tokens;
    for (size_t i = 0; i < n; ++i) {
        tokens.push_back(static_cast<Token>(random() % static_cast<uint32_t>(alphabet)));
    }
    return tokens;
}

// Answers that look like what was said before, and never go on like it: the worst that a drafter can meet.
Tokens treacherous(const Tokens & prompt, size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    Tokens answer;
    while (answer.size() < n) {
        const size_t length = 1 + random() % 20, from = random() % (prompt.size() - length);
        for (size_t i = 0; i < length; ++i) {
            answer.push_back(prompt[from + i]);
        }
        answer.push_back(100000 + static_cast<Token>(answer.size()));
    }
    answer.resize(n);
    return answer;
}

// Every token before was found, and none of the guesses is right.
Tokens always_wrong(const Tokens & prompt, size_t n) {
    Drafter drafter(prompt, {});
    Tokens answer;
    Token other = 0;
    while (answer.size() < n) {
        const Draft & draft = drafter.propose(1);
        do {
            other = (other + 1) % 40;
        } while (!draft.tokens.empty() && draft.tokens[0] == other);
        answer.push_back(other);
        drafter.append(other);
    }
    return answer;
}

void no_answer_becomes_much_slower() {
    for (const Machine & machine : machines) {
        for (uint32_t seed = 1; seed <= 60; ++seed) {
            check::context = std::string(machine.name) + ", seed " + std::to_string(seed);
            const Tokens prompt = noise(500, seed, 1000);
            for (const size_t n : {size_t{60}, size_t{200}, size_t{800}}) {
                CHECK(slowdown(machine, prompt, noise(n, seed + 100, 30), seed) <= 1.06);
                CHECK(slowdown(machine, prompt, noise(n, seed + 100, 1000), seed) <= 1.06);
                CHECK(slowdown(machine, prompt, treacherous(prompt, n, seed), seed) <= 1.06);
                CHECK(slowdown(machine, noise(500, seed, 40), always_wrong(noise(500, seed, 40), n), seed) <= 1.06);
                CHECK(slowdown(machine, prompt, noise(n, seed + 100, 1000), seed, noise(n, seed + 200, 1000)) <= 1.06);
            }
        }
    }
    check::context.clear();
}

// A document comes again with a word changed here and there, as a prompt's or as a prediction.
void what_repeats_becomes_faster() {
    for (const Machine & machine : machines) {
        for (uint32_t seed = 1; seed <= 5; ++seed) {
            check::context = std::string(machine.name) + ", seed " + std::to_string(seed);
            const Tokens document = noise(600, seed, 5000);
            Tokens answer = document;
            for (size_t i = 50; i < answer.size(); i += 50) {
                answer[i] = 90000 + static_cast<Token>(i);
            }
            // With 50 tokens between two changes, at most kMaxRows of them in a pass, an eighth of the passes is left
            // at best. A third of what that gives is asked for.
            const double best = (machine.pass(8) / 8) / machine.pass(1);
            const double slack = best + (1 - best) / 3;
            CHECK(slowdown(machine, document, answer, seed) < slack);
            CHECK(slowdown(machine, noise(100, seed + 9, 5000), answer, seed, document) < slack);
        }
    }
    check::context.clear();
}

// A pass that something disturbed is not believed for ever.
void costs_are_learned_again() {
    RowCosts costs;
    CHECK_EQ(costs.ms(8), 0.0);
    for (int i = 0; i < 30; ++i) {
        costs.observe(1, 100);
    }
    CHECK_NEAR(costs.ms(1), 100, 1e-6);
    CHECK(costs.ms(8) > 100 && costs.ms(8) < 200);   // never tried: a little more for every row
    for (int i = 0; i < 30; ++i) {
        costs.observe(8, 160);
    }
    CHECK_NEAR(costs.ms(8), 160, 5);
    CHECK(costs.ms(4) > costs.ms(2) && costs.ms(4) < 160);   // between the two
    costs.observe(8, 5000);
    CHECK(costs.ms(8) < 240);
    const double disturbed = costs.ms(8);
    for (int i = 0; i < 400; ++i) {
        costs.observe(1, 100);
    }
    CHECK(costs.ms(8) < disturbed);
    CHECK_NEAR(costs.ms(1), 100, 2);
}

// A disturbed pass with one row, and after it only passes with two: one row cannot take more.
void one_row_costs_no_more_than_two() {
    RowCosts costs;
    costs.observe(1, 140);
    for (int i = 0; i < 20; ++i) {
        costs.observe(2, 110);
    }
    CHECK(costs.ms(1) - costs.change_ms() <= costs.ms(2) + 1e-9);
    CHECK_NEAR(costs.ms(2), 110, 2);
}

void costs_grow_together() {
    RowCosts costs;
    for (int i = 0; i < 30; ++i) {
        costs.observe(1, 100);
        costs.observe(8, 160);
    }
    for (int i = 0; i < 30; ++i) {
        costs.observe(1, 300);
    }
    CHECK_NEAR(costs.ms(1), 300, 10);
    CHECK(costs.ms(8) > 240);
}

void a_draft_is_planned_for_one_alone() {
    Scheduler scheduler(512);
    const Running drafting{3, 0, {0.99f, 0.98f, 0.97f}, 1000};
    CHECK_EQ(scheduler.plan({drafting}).n_draft, 0);   // nothing is known of the time
    scheduler.observe_decode(1, 100);
    scheduler.observe_decode(1, 100);
    CHECK_EQ(scheduler.plan({drafting}).n_draft, 0);  // one pass may have been disturbed
    scheduler.observe_decode(1, 100);
    CHECK_EQ(scheduler.plan({drafting}).n_draft, 1);   // no further than twice what was tried
    scheduler.observe_decode(2, 105);
    CHECK_EQ(scheduler.plan({drafting}).n_draft, 3);
    CHECK_EQ(scheduler.plan({drafting, {4, 900, {}, 0}}).n_draft, 3);   // a prompt is a pass of its own
    CHECK_EQ(scheduler.plan({drafting, {4, 0, {}, 0}}).n_draft, 0);
    CHECK_EQ(scheduler.plan({{3, 0, {0.99f, 0.98f, 0.97f}, 0}}).n_draft, 0);   // it may lose nothing
    CHECK_EQ(scheduler.plan({{3, 0, {0.01f, 0.001f}, 1000}}).n_draft, 0);      // it promises nothing
    Scheduler always(512, true, true);
    CHECK_EQ(always.plan({{3, 0, {0.01f, 0.001f}, 0}}).n_draft, 2);
    CHECK_EQ(always.plan({{3, 0, {0.01f}, 0}, {4, 0, {}, 0}}).n_draft, 0);
}

}  // namespace

int main() {
    no_answer_becomes_much_slower();
    what_repeats_becomes_faster();
    costs_are_learned_again();
    one_row_costs_no_more_than_two();
    costs_grow_together();
    a_draft_is_planned_for_one_alone();
    return check::result("speculation");
}
