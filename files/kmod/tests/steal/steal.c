// SPDX-License-Identifier: GPL-2.0-only
/* Takes one function for itself (IPMODIFY), as a live patch would. */
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/string.h>

static char *function = "security_socket_getsockopt";
module_param(function, charp, 0400);
MODULE_PARM_DESC(function, "name of the function to take");

static void notrace steal_nothing(unsigned long ip, unsigned long parent,
				  struct ftrace_ops *ops, struct ftrace_regs *regs)
{
}

static struct ftrace_ops steal_ops = {
	.func = steal_nothing,
	.flags = FTRACE_OPS_FL_IPMODIFY,
};

static int __init steal_init(void)
{
	int error = ftrace_set_filter(&steal_ops, function, strlen(function), 1);

	return error ? error : register_ftrace_function(&steal_ops);
}

static void __exit steal_exit(void)
{
	unregister_ftrace_function(&steal_ops);
	ftrace_free_filter(&steal_ops);
}

module_init(steal_init);
module_exit(steal_exit);

MODULE_DESCRIPTION("Takes a function, so that slim_kmod cannot have it");
MODULE_LICENSE("GPL");
