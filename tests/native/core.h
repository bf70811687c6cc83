/* core.h - the core that is tested: its source, in one program with the test (coverage, memcheck, fuzzing); or its
 * headers alone, where it is linked in and built once for all tests (GB_APART: run.py). */
#ifndef CORE_H
#define CORE_H
#ifdef GB_APART
#include "image.h"
#include "lock.h"
#include "pour.h"
#else
#include "gb.c"
#endif
#endif
