"""What was asked of a server: requests with their arrival, lengths, tenants, sessions and shared prefixes.

It reads, writes and generates workloads; times are seconds from the start of the workload, lengths are tokens.
"""
