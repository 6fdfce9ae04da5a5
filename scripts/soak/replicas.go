package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// fleet holds the replicas of the service.
type fleet struct {
	program     string
	log         io.Writer
	environment []string

	running []*replica
	started int
	// died counts the replicas that ended on their own.
	died atomic.Int32
}

// replica is a process of the service.
type replica struct {
	name    int
	address string
	process *os.Process
	// ended is closed when the process has ended, and failed says how.
	ended  chan struct{}
	failed error
	// expected is set before the process is told to end.
	expected atomic.Bool
}

const (
	readyTimeout = 2 * time.Minute
	stopTimeout  = time.Minute
)

// start adds replicas, and returns once all of them are ready.
func (f *fleet) start(ctx context.Context, n int) error {
	added := make([]*replica, n)

	for i := range added {
		r, err := f.launch()
		if err != nil {
			return err
		}

		added[i] = r
		f.running = append(f.running, r)
	}

	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("a replica was not ready within "+readyTimeout.String()))
	defer cancel()

	for _, r := range added {
		if err := r.ready(ctx); err != nil {
			return err
		}
	}

	return nil
}

func (f *fleet) launch() (*replica, error) {
	f.started++

	address, err := freeAddress()
	if err != nil {
		return nil, err
	}

	r := &replica{name: f.started, address: address, ended: make(chan struct{})}
	cmd := exec.Command(f.program, "serve")
	cmd.Stdout, cmd.Stderr = f.log, f.log
	cmd.Env = append(f.environment, "MILLRACE_HTTP__ADDR=127.0.0.1:0", "MILLRACE_HEALTH__ADDR="+address) //nolint:gocritic // each replica has its own

	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting replica %d: %w", r.name, err)
	}

	r.process = cmd.Process

	go func() {
		r.failed = cmd.Wait()

		if !r.expected.Load() {
			f.died.Add(1)
		}

		close(r.ended)
	}()

	return r, nil
}

// ready waits until the replica is ready.
func (r *replica) ready(ctx context.Context) error {
	for {
		answer, err := http.Get("http://" + r.address + "/readyz") //nolint:noctx // our own process
		if err == nil {
			_ = answer.Body.Close()

			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}

		select {
		case <-r.ended:
			return fmt.Errorf("replica %d ended: %w", r.name, r.failed)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// kill ends a replica with SIGKILL.
func (f *fleet) kill(at int) {
	r := f.take(at)
	r.expected.Store(true)
	_ = r.process.Kill()

	<-r.ended
}

// stop ends a replica as an orchestrator does, and returns once it has drained.
func (f *fleet) stop(at int) error {
	r := f.take(at)
	r.expected.Store(true)

	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}

	select {
	case <-r.ended:
		if r.failed != nil {
			return fmt.Errorf("replica %d did not drain: %w", r.name, r.failed)
		}

		return nil
	case <-time.After(stopTimeout):
		_ = r.process.Kill()

		return fmt.Errorf("replica %d did not drain within %s", r.name, stopTimeout)
	}
}

func (f *fleet) take(at int) *replica {
	r := f.running[at]
	f.running = append(f.running[:at:at], f.running[at+1:]...)

	return r
}

func (f *fleet) killAll() {
	for len(f.running) > 0 {
		f.kill(0)
	}
}

// freeAddress returns an address below the range from which the kernel assigns ports to
// connections, so that it stays free.
func freeAddress() (string, error) {
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(20_000)))

		listener, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}

		return address, listener.Close()
	}

	return "", errors.New("found no free port")
}
