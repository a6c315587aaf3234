// A library that is NCCL as far as its version goes: built once a version, and once without.
#ifdef NCCL_VERSION
extern "C" __attribute__((visibility("default"))) int ncclGetVersion(int* version) {
  *version = NCCL_VERSION;
  return 0;
}
#endif
