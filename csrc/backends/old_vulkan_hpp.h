// VK_EXT_layer_settings for Vulkan-Hpp before 1.3.268 (Debian 12, Ubuntu 22.04), included in front of ggml's Vulkan
// backend. The backend fills in a list of settings for a validation layer, which only its debug builds turn on; without
// that layer the driver skips the list by its type, so the head must be as Vulkan defines it and the rest stays empty.
#pragma once

#include <cstdint>
#include <vulkan/vulkan_core.h>

namespace vk {

enum class LayerSettingTypeEXT { eBool32 = 0 };

struct LayerSettingEXT {
    const char * layer;
    const char * name;
    LayerSettingTypeEXT type;
    uint32_t n_values;
    const void * values;
};

struct LayerSettingsCreateInfoEXT {
    VkStructureType type =
        static_cast<VkStructureType>(1000496000);  // VK_STRUCTURE_TYPE_LAYER_SETTINGS_CREATE_INFO_EXT
    const void * next = nullptr;
    uint32_t n_settings = 0;
    const void * settings = nullptr;

    template <typename List> explicit LayerSettingsCreateInfoEXT(const List &) {}
};

}  // namespace vk
