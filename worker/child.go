// One worker process as the front process sees it: started, asked, ended.

package worker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

const (
	pingTimeout = 45 * time.Second
	// lastWords is what is waited for the end of standard error when the process has ended: somebody else may have it open.
	lastWords = 2 * time.Second
	// closeGrace is what a worker gets to end by itself.
	closeGrace = 5 * time.Second
)

// child is a worker process. Its goroutines end with the process.
type child struct {
	cmd     *exec.Cmd
	log     *slog.Logger
	link    *link
	info    Info // once ready is closed
	born    time.Time
	ready   chan struct{} // closed when the model is loaded
	gone    chan struct{} // closed when the connection is over
	exited  chan struct{} // closed when the process has ended and its goroutines have
	waitErr error         // once exited is closed

	mu     sync.Mutex
	calls  map[uint64]*call
	last   uint64    // id of a request
	pong   time.Time // when the last one came
	ending bool      // close was called: the end of the process is no surprise
	err    error     // once gone is closed: why

	users    int  // of the Model that has it, which guards both
	retiring bool //
}

// startChild starts a process with a model and waits until that is loaded. name is for the log.
func startChild(ctx context.Context, o Options, folder, name string) (_ *child, err error) {
	dir, err := os.MkdirTemp("", "glimpse-worker-") // 0700: nobody else may connect
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("start worker: listen (is TMPDIR longer than a socket's path may be?): %w", err)
	}
	defer ln.Close()
	c := &child{
		cmd: o.Command(folder, socket), log: o.Logger.With("model", name), born: time.Now(),
		ready: make(chan struct{}), gone: make(chan struct{}), exited: make(chan struct{}), calls: map[uint64]*call{},
	}
	if err := c.start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	defer func() {
		if err != nil {
			c.kill()
			<-c.exited
		}
	}()
	conn, err := c.accept(ctx, ln)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // so that greet ends with ctx
	err = greet(conn, in)
	if stop(); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	c.link, c.pong = newLink(conn), time.Now()
	go c.read(in)
	select {
	case <-c.ready:
		go c.watch(o.PingTimeout)
		return c, nil
	case <-c.gone:
		return nil, &LoadError{Folder: folder, Err: c.err}
	case <-ctx.Done():
		c.link.fail(context.Cause(ctx))
		<-c.gone
		return nil, context.Cause(ctx)
	}
}

// start starts the process. The thread that starts it lives as long as it does, since it dies with that thread.
func (c *child) start() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = nil, w, w
	c.cmd.SysProcAttr = attributes()
	logged := make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		_ = w.Close() // the child's copy is the one that counts
		if err == nil {
			c.log = c.log.With("worker", c.cmd.Process.Pid)
		}
		started <- err
		if err != nil {
			return
		}
		c.waitErr = c.cmd.Wait()
		select {
		case <-logged:
		case <-time.After(lastWords):
		}
		_ = r.Close() // ends the relay
		<-logged
		close(c.exited)
	}()
	if err := <-started; err != nil {
		_ = r.Close()
		return err
	}
	go func() {
		relay(r, c.log)
		close(logged)
	}()
	return nil
}

// accept waits for the process to connect.
func (c *child) accept(ctx context.Context, ln net.Listener) (net.Conn, error) {
	type accepted struct {
		conn net.Conn
		err  error
	}
	result := make(chan accepted, 1)
	go func() {
		conn, err := ln.Accept()
		result <- accepted{conn, err}
	}()
	var failed error
	select {
	case a := <-result:
		if a.err != nil {
			return nil, fmt.Errorf("start worker: %w", a.err)
		}
		if err := checkPeer(a.conn.(*net.UnixConn), c.cmd.Process.Pid); err != nil {
			_ = a.conn.Close()
			return nil, err
		}
		return a.conn, nil
	case <-c.exited:
		failed = fmt.Errorf("start worker: it ended before it connected (%w); the log has what it said", c.exit())
	case <-ctx.Done():
		failed = context.Cause(ctx)
	}
	_ = ln.Close()
	if a := <-result; a.err == nil {
		_ = a.conn.Close()
	}
	return nil, failed
}

// exit is how the process ended.
func (c *child) exit() error {
	if c.waitErr != nil {
		return c.waitErr
	}
	return errors.New("exit status 0")
}

// kill ends the process at once. There may be none any more, which is as good.
func (c *child) kill() { _ = c.cmd.Process.Kill() }

// read hands what the worker sends to the requests, until the connection ends.
func (c *child) read(in *bufio.Reader) {
	err := c.dispatchAll(in)
	c.link.fail(err)
	c.mu.Lock()
	c.err = err
	calls := c.calls
	c.calls = nil
	ending := c.ending
	c.mu.Unlock()
	close(c.gone)
	for _, call := range calls {
		if ending {
			call.fail(errLinkClosed)
		} else {
			call.fail(err)
		}
	}
}

func (c *child) dispatchAll(in *bufio.Reader) error {
	for {
		f, err := readFrame(in, maxPayload)
		if err != nil {
			return err
		}
		switch {
		case f.kind == kindPong:
			c.mu.Lock()
			c.pong = time.Now()
			c.mu.Unlock()
		case f.kind == kindReady && f.id == 0 && c.info == (Info{}):
			if err := decode(f.payload, &c.info); err != nil {
				return err
			}
			close(c.ready)
		case f.kind == kindFailure && f.id == 0:
			var reason failure
			if err := decode(f.payload, &reason); err != nil {
				return err
			}
			return reason.err()
		case f.kind == kindToken || f.kind == kindResult || f.kind == kindFailure:
			if err := c.deliver(f); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: a worker does not send frames of kind %d for %d", errProtocol, f.kind, f.id)
		}
	}
}

// deliver hands a frame to its request, if anybody still waits for that.
func (c *child) deliver(f frame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.id == 0 || f.id > c.last {
		return fmt.Errorf("%w: a frame for request %d, which was never made", errProtocol, f.id)
	}
	call := c.calls[f.id]
	if call == nil {
		return nil // given up
	}
	if f.kind != kindToken {
		delete(c.calls, f.id)
	}
	call.put(f)
	return nil
}

// watch pings, and kills a worker that does not answer; when the connection ends it sees to it that the process does too.
func (c *child) watch(timeout time.Duration) {
	tick := time.NewTicker(max(timeout/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-c.gone:
			select {
			case <-c.exited:
			case <-time.After(closeGrace):
				c.kill()
			}
			return
		case <-tick.C:
			c.mu.Lock()
			silent := time.Since(c.pong)
			c.mu.Unlock()
			if silent > timeout {
				c.log.Error("the worker does not answer and is ended", "silent", silent)
				c.kill()
			}
			_ = c.link.send(frame{kind: kindPing}) // a broken link shows in gone
		}
	}
}

// close ends the worker: the requests in flight fail, the process ends by itself or is killed. It returns when it has.
func (c *child) close() {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	c.link.finish()
	select {
	case <-c.exited:
	case <-time.After(closeGrace):
		c.kill()
		<-c.exited
	}
	<-c.gone
	<-c.link.done
}

// alive says whether requests can be sent.
func (c *child) alive() bool {
	select {
	case <-c.gone:
		return false
	default:
		return true
	}
}
