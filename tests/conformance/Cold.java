// SPDX-License-Identifier: Apache-2.0
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;

/**
 * Cold connects in the JDK's ways, from AF_INET6 sockets: see cold.py, which serves them.
 *
 * java Cold ADDRESS FIRST COUNT blocking|selector
 *
 * One connect to each port; prints "slim=S overlay=O slowest-us=U held-us=H". Every other
 * blocking one has a time-out, which the JDK makes of a non-blocking connect and poll.
 */
public class Cold {
    static final int WAIT_MS = 8000;
    static final Path SCHEDSTAT = Path.of("/proc/thread-self/schedstat");
    static int slim, overlay;
    static long longestCall, longestTurn, seen, waited;

    /** Nanoseconds that this thread has waited for a CPU. */
    static long queued() throws Exception {
        return Long.parseLong(Files.readString(SCHEDSTAT).split(" ")[1]);
    }

    static void lookAway() throws Exception {
        seen = System.nanoTime();
        waited = queued();
    }

    /** Nanoseconds since the last look, less what the thread had no CPU for. */
    static long look() throws Exception {
        long now = System.nanoTime(), then = queued(), gap = now - seen - (then - waited);
        seen = now;
        waited = then;
        return gap;
    }

    static void note(String path) {
        if (path.equals("slim"))
            slim++;
        else if (path.equals("over"))
            overlay++;
        else
            throw new IllegalStateException("the server says " + path);
    }

    static void blocking(InetSocketAddress to) throws Exception {
        try (Socket s = new Socket()) {
            s.setSoTimeout(WAIT_MS);
            s.connect(to, to.getPort() % 2 * WAIT_MS);
            s.getOutputStream().write("path".getBytes(StandardCharsets.US_ASCII));
            note(new String(s.getInputStream().readNBytes(4), StandardCharsets.US_ASCII));
        }
    }

    /** Waits for one event with a timer of a millisecond beside it. */
    static void await(Selector selector) throws Exception {
        long end = System.nanoTime() + WAIT_MS * 1_000_000L;
        while (selector.select(1) == 0) {
            longestTurn = Math.max(longestTurn, look());
            if (System.nanoTime() > end)
                throw new IllegalStateException("no event");
        }
        longestTurn = Math.max(longestTurn, look());
        selector.selectedKeys().clear();
    }

    static void selecting(InetSocketAddress to) throws Exception {
        ByteBuffer word = ByteBuffer.allocate(4);
        try (Selector selector = Selector.open(); SocketChannel s = SocketChannel.open()) {
            s.configureBlocking(false);
            lookAway();
            boolean done = s.connect(to);
            long took = look();
            longestCall = Math.max(longestCall, took);
            longestTurn = Math.max(longestTurn, took);
            SelectionKey key = s.register(selector, SelectionKey.OP_CONNECT);
            if (!done) {
                await(selector);
                if (!s.finishConnect())
                    throw new IllegalStateException("finishConnect");
                longestTurn = Math.max(longestTurn, look());
            }
            s.write(ByteBuffer.wrap("path".getBytes(StandardCharsets.US_ASCII)));
            key.interestOps(SelectionKey.OP_READ);
            while (word.hasRemaining()) {
                await(selector);
                if (s.read(word) < 0)
                    throw new IllegalStateException("end of data");
            }
            note(new String(word.array(), StandardCharsets.US_ASCII));
        }
    }

    public static void main(String[] a) throws Exception {
        int first = Integer.parseInt(a[1]), count = Integer.parseInt(a[2]);
        for (int port = first; port < first + count; port++) {
            InetSocketAddress to = new InetSocketAddress(a[0], port);
            // Loading of classes at their first use is not the network's.
            if (port == first + 1)
                longestCall = longestTurn = 0;
            if (a[3].equals("blocking"))
                blocking(to);
            else
                selecting(to);
        }
        System.out.printf("slim=%d overlay=%d slowest-us=%d held-us=%d%n", slim, overlay,
                longestCall / 1000, longestTurn / 1000);
    }
}
