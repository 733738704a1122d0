// SPDX-License-Identifier: GPL-2.0-only
/* One static program for the guest; the first word says which test. */
#include "lib.h"

#include <signal.h>

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} tests[] = {
	{ "calls", main_calls }, { "control", main_control }, { "cost", main_cost },
	{ "hold", main_hold }, { "reload", main_stress }, { "revoked", main_revoked },
	{ "stress", main_stress }, { "sweep", main_sweep },
};

int main(int argc, char **argv)
{
	size_t i;

	signal(SIGPIPE, SIG_IGN);
	for (i = 0; argc > 1 && i < sizeof(tests) / sizeof(*tests); i++)
		if (!strcmp(argv[1], tests[i].name))
			return tests[i].run(argc, argv) ? 1 : 0;
	fprintf(stderr, "slimtest: which test?\n");
	return 2;
}
