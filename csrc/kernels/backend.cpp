// Our buffer type and its registration with ggml's CPU backend: weights are repacked on load, operations dispatched.
#include "kernels/kernels.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include <traits.h>

#include "kernels/attention/attention.h"
#include "kernels/dispatch.h"
#include "kernels/loaded_weights.h"
#include "kernels/matmul/layout.h"
#include "kernels/matmul/matmul.h"
#include "kernels/matmul/plan.h"
#include "platform/pages.h"

namespace pgl::kernels {
namespace {

// Of the calling thread: an engine loads, plans and computes from one thread, and two engines may choose differently.
thread_local bool enabled = true;
std::atomic<bool> faulty{false};       // the self-test failed: off for all
std::atomic<bool> registered{false};

// Of the calling thread, as above: what it plans that we do not compute.
thread_local bool watching = false;
thread_local std::string foreign;

// Operations that look at one row at a time, or only move data, whatever ggml computes them with.
bool is_local(const ggml_tensor * op) {
    switch (op->op) {
    case GGML_OP_MUL_MAT:  // a Hadamard transform, of the cache's rows before they are quantized, is no product to ggml
        return op->op_params[1] == GGML_HINT_SRC0_IS_HADAMARD;
    case GGML_OP_MUL_MAT_ID:
    case GGML_OP_OUT_PROD:
    case GGML_OP_FLASH_ATTN_EXT:
    case GGML_OP_SSM_CONV:
    case GGML_OP_SSM_SCAN:
    case GGML_OP_RWKV_WKV6:
    case GGML_OP_RWKV_WKV7:
    case GGML_OP_GATED_LINEAR_ATTN:
        return false;
    default:
        return true;
    }
}

void note(const ggml_tensor * op) {
    if (watching && foreign.empty() && !is_local(op)) {
        foreign = ggml_op_name(op->op);
        if (op->src[0] && op->src[0]->name[0] != '\0') {
            foreign += " of " + std::string(op->src[0]->name) + " (" + ggml_type_name(op->src[0]->type) + ")";
        }
    }
}

bool wanted() {
    return enabled && !faulty.load(std::memory_order_relaxed);
}

struct MatmulTraits : ggml::cpu::tensor_traits {
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        matmul_plan(n_threads, op);
        size = 0;  // our scratch is our own
        return true;
    }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        matmul_compute(params, op);
        return true;  // always: ggml would read repacked bytes as plain blocks
    }
} matmul_traits;

struct AttentionTraits : ggml::cpu::tensor_traits {
    bool work_size(int n_threads, const ggml_tensor * op, size_t & size) override {
        // The plan is made on the engine's own thread, which knows its choice; the threads that compute read it here.
        const_cast<ggml_tensor *>(op)->extra = wanted() ? this : nullptr;
        size = attention_work_size(n_threads, op);
        return wanted();
    }
    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        if (op->extra != this) {
            return false;
        }
        attention_compute(params, op);
        return true;
    }
} attention_traits;

ggml_backend_buffer_type_t buffer_type();

bool holds(const ggml_tensor * tensor) {
    return tensor && tensor->buffer && tensor->buffer->buft == buffer_type();
}

struct Extra : ggml::cpu::extra_buffer_type {
    // Asked at load with a zero-size buffer and no data: type, shape and buffer type are all there is to look at.
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT || !holds(op->src[0]) || !matmul_supports(op)) {
            return false;
        }
        if (op->src[0]->buffer->size == 0 && !wanted()) {
            return false;  // a load asks; weights that are repacked already stay ours
        }
        const ggml_tensor * rows = op->src[1];
        return !rows->buffer || ggml_backend_buft_is_host(rows->buffer->buft);
    }
    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op == GGML_OP_MUL_MAT && holds(op->src[0])) {
            return &matmul_traits;
        }
        const bool attention = op->op == GGML_OP_FLASH_ATTN_EXT && attention_supports(op);
        if (!attention || !wanted()) {
            note(op);
        }
        return attention ? &attention_traits : nullptr;
    }
};

Type owned_type(const ggml_tensor * tensor) {
    const Type type = type_of(tensor->type);
    if (type == n_types) {
        GGML_ABORT("pgl: tensor %s of type %s in our buffer", tensor->name, ggml_type_name(tensor->type));
    }
    return type;
}

// Half of repacking is the kernel clearing the pages it writes to; a smaller part is not worth starting a thread.
constexpr int64_t bytes_per_thread = 1 << 17;

template <typename Work>  // Work(first_group, last_group)
void over_groups(const ggml_tensor * tensor, Work work) {
    const int64_t n_groups = tensor->ne[1] / group_rows;
    const int64_t useful = 1 + static_cast<int64_t>(ggml_nbytes(tensor)) / bytes_per_thread;
    const int64_t n_threads = std::min<int64_t>({useful, n_groups, usable_cpus()});
    std::vector<std::thread> threads;
    threads.reserve(static_cast<size_t>(n_threads));
    for (int64_t i = 1; i < n_threads; ++i) {
        const auto part = [=] { work(n_groups * i / n_threads, n_groups * (i + 1) / n_threads); };
        try {
            threads.emplace_back(part);
        } catch (const std::system_error &) {
            part();  // no more threads to be had: this one does it
        }
    }
    work(0, n_groups / n_threads);
    for (auto & thread : threads) {
        thread.join();
    }
}

void free_buffer(ggml_backend_buffer_t buffer) {
    weights_gone(buffer->context);
    free_pages(buffer->context, buffer->size);
}

void * get_base(ggml_backend_buffer_t buffer) {
    return buffer->context;
}

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    // Non-null, or ggml's tiled path would take the repacked bytes for plain blocks.
    tensor->extra = &matmul_traits;
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && "pgl: weights are set whole");
    const Type type = owned_type(tensor);
    over_groups(tensor, [=](int64_t first, int64_t last) {
        pack(type, tensor->ne[1], tensor->ne[0], data, tensor->data, first, last);
    });
    weights_loaded(buffer->context, buffer->size, type, tensor->ne[0], size);
}

void get_tensor(ggml_backend_buffer_t, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    const Type type = owned_type(tensor);
    const auto unpack_into = [=](void * rows) {
        over_groups(tensor, [=](int64_t first, int64_t last) {
            unpack(type, tensor->ne[1], tensor->ne[0], tensor->data, rows, first, last);
        });
    };
    if (offset == 0 && size == ggml_nbytes(tensor)) {
        unpack_into(data);
        return;
    }
    std::vector<uint8_t> whole(ggml_nbytes(tensor));
    unpack_into(whole.data());
    std::memcpy(data, whole.data() + offset, size);
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    std::memset(buffer->context, value, buffer->size);
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    void * pages = allocate_pages(size, PageSize::huge);
    if (!pages) {
        return nullptr;
    }
    ggml_backend_buffer_i iface{};
    iface.free_buffer = free_buffer;
    iface.get_base = get_base;
    iface.init_tensor = init_tensor;
    iface.set_tensor = set_tensor;
    iface.get_tensor = get_tensor;
    iface.clear = clear;
    return ggml_backend_buffer_init(buft, iface, pages, size);
}

ggml_backend_buffer_type_t buffer_type() {
    static Extra extra;
    static ggml_backend_buffer_type type = [] {
        ggml_backend_buffer_type value{};
        value.iface.get_name = [](ggml_backend_buffer_type_t) { return "CPU_POLARGRID"; };
        value.iface.alloc_buffer = alloc_buffer;
        value.iface.get_alignment = [](ggml_backend_buffer_type_t) -> size_t { return 64; };
        // is_host stays null: a host buffer would be filled behind set_tensor's back when mmap is off.
        value.device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
        value.context = static_cast<ggml::cpu::extra_buffer_type *>(&extra);
        return value;
    }();
    return &type;
}

}  // namespace

void register_backend() {
    static std::once_flag once;
    std::call_once(once, [] {
        const char * wish = std::getenv("PGL_KERNELS");
        // A ggml built for AMX has a sixteenfold int8 unit behind its own buffer type: leave it unless asked.
        choose_isa(wish ? wish : ggml_cpu_has_amx_int8() ? "off" : nullptr);
        if (!active_isa()) {
            return;
        }
        auto & types = ggml_backend_cpu_get_extra_buffer_types();
        if (std::find(types.begin(), types.end(), buffer_type()) == types.end()) {
            types.insert(types.begin(), buffer_type());
        }
        registered = true;
    });
}

void begin_pass() {
    forget_plan();
}

void set_enabled(bool value) {
    enabled = value;
}

void disable_for_all() {
    faulty = true;
}

void watch_foreign() {
    watching = true;
    foreign.clear();
}

std::string foreign_operation() {
    watching = false;
    return foreign;
}

const char * isa() {
    return active_isa() ? active_isa()->name : "off";
}

}  // namespace pgl::kernels
