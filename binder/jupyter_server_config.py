"""The settings of Binder's server; postBuild copies them to where it reads them."""

# Binder gives 2 GB, and each lesson's kernel takes 0.5 to 0.8 GB: a kernel that nobody
# has used for 20 minutes ends, though its tab is open. Its lesson keeps what was typed,
# and Run All brings back the rest.
c = get_config()  # noqa: F821
c.MappingKernelManager.cull_idle_timeout = 20 * 60
c.MappingKernelManager.cull_interval = 60
c.MappingKernelManager.cull_connected = True
