"""The machine behind the surface `paging`: a pool of KV blocks, two queues, a CPU tier and one PCIe link, as Numba kernels on plain bytes."""
