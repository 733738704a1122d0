// SPDX-License-Identifier: GPL-2.0-only
/*
 * Has a kernel thread ask for the name of a socket, as one might that works
 * for a container. The descriptor is written to the parameter "fd"; the
 * write's error is the answer.
 */
#include <linux/file.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/workqueue.h>

struct worker_question {
	struct work_struct work;
	struct socket *sock;
	int answer;
};

static void worker_ask(struct work_struct *work)
{
	struct worker_question *question = container_of(work, struct worker_question, work);
	struct sockaddr_storage name;

	question->answer = kernel_getsockname(question->sock, (struct sockaddr *)&name);
}

static int worker_set(const char *text, const struct kernel_param *parameter)
{
	struct worker_question question;
	int fd, error;

	error = kstrtoint(text, 0, &fd);
	if (error)
		return error;
	question.sock = sockfd_lookup(fd, &error);
	if (!question.sock)
		return error;
	INIT_WORK_ONSTACK(&question.work, worker_ask);
	schedule_work(&question.work);
	flush_work(&question.work);
	destroy_work_on_stack(&question.work);
	sockfd_put(question.sock);
	return question.answer < 0 ? question.answer : 0;
}

static const struct kernel_param_ops worker_ops = { .set = worker_set };

module_param_cb(fd, &worker_ops, NULL, 0200);
MODULE_PARM_DESC(fd, "descriptor of the socket to ask about");

MODULE_DESCRIPTION("Asks about a socket from a kernel thread");
MODULE_LICENSE("GPL");
