/* kill_core.c - the core, compiled so that every store it makes is announced beforehand: gcc's thread
 * sanitizer puts the calls there, and what they call is ours (kill.h). */
#include <string.h>
void *kill_memcpy(void *to, const void *from, size_t n);
void *kill_memmove(void *to, const void *from, size_t n);
void *kill_memset(void *to, int c, size_t n);
#include <stdbool.h>
extern bool kill_alloc_fails;
#define GB_ALLOC_FAILS() kill_alloc_fails
#define memcpy kill_memcpy
#define memmove kill_memmove
#define memset kill_memset
#include "gb.c"
#include "kill.h"

bool kill_alloc_fails;

/* What is inline in the headers, here so that its stores are announced too. */
void kill_use(struct gb_store *s, gb_ref ref, uint64_t now) { gb_store_use(s, ref, now); }
