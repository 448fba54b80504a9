/* A Vulkan layer that makes a device worse than it is, for tests. It does what files in the folder $PGL_FAULTS say:
 *
 *     memory    a number: bytes of memory that the device says it has and gives
 *     lost      once it exists, what is submitted and what is waited for fails with VK_ERROR_DEVICE_LOST
 *     full      while it exists, every allocation fails with VK_ERROR_OUT_OF_DEVICE_MEMORY
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vulkan/vk_layer.h>
#include <vulkan/vulkan.h>

#define EXPORT __attribute__((visibility("default")))

static PFN_vkGetInstanceProcAddr next_instance_proc;
static PFN_vkGetDeviceProcAddr next_device_proc;
static PFN_vkGetPhysicalDeviceMemoryProperties next_memory;
static PFN_vkGetPhysicalDeviceMemoryProperties2 next_memory2;
static PFN_vkAllocateMemory next_allocate;
static PFN_vkQueueSubmit next_submit;
static PFN_vkQueueSubmit2 next_submit2;
static PFN_vkWaitForFences next_wait;
static PFN_vkGetFenceStatus next_fence_status;

static void path_of(const char *name, char path[4096]) {
    snprintf(path, 4096, "%s/%s", getenv("PGL_FAULTS"), name);
}

static int exists(const char *name) {
    char path[4096];
    path_of(name, path);
    return access(path, F_OK) == 0;
}

static VkDeviceSize memory_limit(void) {
    char path[4096];
    unsigned long long limit = 0;
    path_of("memory", path);
    FILE *file = fopen(path, "r");
    if (file != NULL) {
        if (fscanf(file, "%llu", &limit) != 1) limit = 0;
        fclose(file);
    }
    return limit;
}

static void shrink(VkPhysicalDeviceMemoryProperties *properties) {
    const VkDeviceSize limit = memory_limit();
    for (uint32_t i = 0; limit != 0 && i < properties->memoryHeapCount; i++) {
        properties->memoryHeaps[i].size = limit;
    }
}

static VKAPI_ATTR void VKAPI_CALL get_memory(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties *properties) {
    next_memory(device, properties);
    shrink(properties);
}

static VKAPI_ATTR void VKAPI_CALL get_memory2(VkPhysicalDevice device, VkPhysicalDeviceMemoryProperties2 *properties) {
    next_memory2(device, properties);
    shrink(&properties->memoryProperties);
    const VkDeviceSize limit = memory_limit();
    for (VkPhysicalDeviceMemoryBudgetPropertiesEXT *next = properties->pNext; limit != 0 && next != NULL;
         next = next->pNext) {
        if (next->sType != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT) continue;
        for (uint32_t i = 0; i < VK_MAX_MEMORY_HEAPS; i++) {   /* a driver that counts: all of it is free */
            next->heapBudget[i] = limit;
            next->heapUsage[i] = 0;
        }
    }
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info,
                                               const VkAllocationCallbacks *callbacks, VkDeviceMemory *memory) {
    return exists("full") ? VK_ERROR_OUT_OF_DEVICE_MEMORY : next_allocate(device, info, callbacks, memory);
}

static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t n, const VkSubmitInfo *infos, VkFence fence) {
    return exists("lost") ? VK_ERROR_DEVICE_LOST : next_submit(queue, n, infos, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL submit2(VkQueue queue, uint32_t n, const VkSubmitInfo2 *infos, VkFence fence) {
    return exists("lost") ? VK_ERROR_DEVICE_LOST : next_submit2(queue, n, infos, fence);
}

static VKAPI_ATTR VkResult VKAPI_CALL wait_for(VkDevice device, uint32_t n, const VkFence *fences, VkBool32 all,
                                               uint64_t timeout) {
    return exists("lost") ? VK_ERROR_DEVICE_LOST : next_wait(device, n, fences, all, timeout);
}

static VKAPI_ATTR VkResult VKAPI_CALL fence_status(VkDevice device, VkFence fence) {
    return exists("lost") ? VK_ERROR_DEVICE_LOST : next_fence_status(device, fence);
}

/* The loader's chain of layers, in the list that hangs on a create-info: this layer's link. */
static void *link_of(const void *next, VkStructureType type) {
    for (VkLayerInstanceCreateInfo *info = (void *)next; info != NULL; info = (void *)info->pNext) {
        if (info->sType == type && info->function == VK_LAYER_LINK_INFO) return info;
    }
    return NULL;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *callbacks, VkInstance *instance) {
    VkLayerInstanceCreateInfo *chain = link_of(info->pNext, VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO);
    next_instance_proc = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    const VkResult result =
        ((PFN_vkCreateInstance)next_instance_proc(VK_NULL_HANDLE, "vkCreateInstance"))(info, callbacks, instance);
    if (result == VK_SUCCESS) {
        next_memory = (void *)next_instance_proc(*instance, "vkGetPhysicalDeviceMemoryProperties");
        next_memory2 = (void *)next_instance_proc(*instance, "vkGetPhysicalDeviceMemoryProperties2");
    }
    return result;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical, const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *callbacks, VkDevice *device) {
    VkLayerDeviceCreateInfo *chain = link_of(info->pNext, VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO);
    PFN_vkGetInstanceProcAddr instance_proc = chain->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    next_device_proc = chain->u.pLayerInfo->pfnNextGetDeviceProcAddr;
    chain->u.pLayerInfo = chain->u.pLayerInfo->pNext;
    const VkResult result =
        ((PFN_vkCreateDevice)instance_proc(VK_NULL_HANDLE, "vkCreateDevice"))(physical, info, callbacks, device);
    if (result == VK_SUCCESS) {
        next_allocate = (void *)next_device_proc(*device, "vkAllocateMemory");
        next_submit = (void *)next_device_proc(*device, "vkQueueSubmit");
        next_submit2 = (void *)next_device_proc(*device, "vkQueueSubmit2");
        next_wait = (void *)next_device_proc(*device, "vkWaitForFences");
        next_fence_status = (void *)next_device_proc(*device, "vkGetFenceStatus");
    }
    return result;
}

static PFN_vkVoidFunction ours(const char *name);

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance_proc(VkInstance instance, const char *name) {
    PFN_vkVoidFunction function = ours(name);
    return function != NULL ? function : next_instance_proc(instance, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device_proc(VkDevice device, const char *name) {
    PFN_vkVoidFunction function = ours(name);
    return function != NULL ? function : next_device_proc(device, name);
}

static PFN_vkVoidFunction ours(const char *name) {
    const struct {
        const char *name;
        void *function;
    } table[] = {
        {"vkGetInstanceProcAddr", get_instance_proc},
        {"vkGetDeviceProcAddr", get_device_proc},
        {"vkCreateInstance", create_instance},
        {"vkCreateDevice", create_device},
        {"vkGetPhysicalDeviceMemoryProperties", get_memory},
        {"vkGetPhysicalDeviceMemoryProperties2", get_memory2},
        {"vkGetPhysicalDeviceMemoryProperties2KHR", get_memory2},
        {"vkAllocateMemory", allocate},
        {"vkQueueSubmit", submit},
        {"vkQueueSubmit2", submit2},
        {"vkWaitForFences", wait_for},
        {"vkGetFenceStatus", fence_status},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (strcmp(table[i].name, name) == 0) return (PFN_vkVoidFunction)table[i].function;
    }
    return NULL;
}

EXPORT VKAPI_ATTR VkResult VKAPI_CALL vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *interface) {
    interface->loaderLayerInterfaceVersion = 2;
    interface->pfnGetInstanceProcAddr = get_instance_proc;
    interface->pfnGetDeviceProcAddr = get_device_proc;
    interface->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
