// SPDX-License-Identifier: Apache-2.0
// Cold connects in libuv's way: see cold.py, which serves them.
//
//   node cold.js ADDRESS FIRST COUNT     one connect to each port, by events; prints
//                                        "slim=S overlay=O slowest-us=U held-us=H"
'use strict';
const fs = require('fs');
const net = require('net');

const [address, first, count] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const sums = { slim: 0, over: 0 };

/** Nanoseconds that this thread has waited for a CPU. */
function queued() {
  return BigInt(fs.readFileSync('/proc/thread-self/schedstat', 'ascii').split(' ')[1]);
}

/** The longest time between two looks, less what the thread had no CPU for. */
class Watch {
  constructor() {
    this.longest = 0n;
    this.lookAway();
  }

  lookAway() {
    this.seen = process.hrtime.bigint();
    this.waited = queued();
  }

  look() {
    const now = process.hrtime.bigint();
    const waited = queued();
    const gap = now - this.seen - (waited - this.waited);
    if (gap > this.longest) this.longest = gap;
    this.seen = now;
    this.waited = waited;
  }
}

function fail(why) {
  console.log(`not ok - ${why}`);
  process.exit(1);
}

const call = new Watch();
let turn;

function next(port) {
  if (port === first + count) {
    const us = (watch) => watch.longest / 1000n;
    console.log(`slim=${sums.slim} overlay=${sums.over} slowest-us=${us(call)} held-us=${us(turn)}`);
    process.exit(0);
  }
  // What the program itself costs at its first use is not the network's.
  if (port === first + 1) {
    call.longest = 0n;
    turn = new Watch();
    setInterval(() => turn.look(), 1);
  }
  let said = '';
  call.lookAway();
  const socket = net.connect(port, address);
  call.look();
  socket.on('error', (error) => fail(`port ${port}: ${error}`));
  socket.on('connect', () => socket.write('path'));
  socket.on('data', (data) => {
    said += data;
    if (said.length < 4) return;
    if (!(said in sums)) fail(`port ${port}: ${said}`);
    sums[said] += 1;
    socket.destroy();
    next(port + 1);
  });
}

setTimeout(() => fail('deadline passed'), 50000);
next(first);
