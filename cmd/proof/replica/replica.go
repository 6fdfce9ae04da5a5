// Package replica runs processes of the service.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// Fleet holds the replicas of the service.
type Fleet struct {
	// Program is the service's program.
	Program string
	// Log gets the logs of all replicas.
	Log io.Writer
	// Environment configures the replicas.
	Environment []string

	// Running are the replicas that nobody has ended, in the order in which they started.
	Running []*Replica
	// Started counts the replicas that were started.
	Started int
	// Died counts the replicas that ended on their own.
	Died atomic.Int32
}

// Replica is a process of the service.
type Replica struct {
	// Name is its number among the replicas of the fleet, from 1.
	Name int
	// Health is the address of its health checks, and API that of the operator API.
	Health, API string

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

// Start adds replicas, and returns once all of them are ready.
func (f *Fleet) Start(ctx context.Context, n int) error {
	added := make([]*Replica, n)

	for i := range added {
		r, err := f.Launch()
		if err != nil {
			return err
		}

		added[i] = r
	}

	for _, r := range added {
		if err := r.Ready(ctx); err != nil {
			return err
		}
	}

	return nil
}

// Launch adds a replica, and returns before it is ready.
func (f *Fleet) Launch() (*Replica, error) {
	f.Started++

	port, err := server.FreePort()
	if err != nil {
		return nil, err
	}

	r := &Replica{Name: f.Started, Health: server.Loopback(port), API: server.Loopback(port + 1), ended: make(chan struct{})}
	cmd := exec.Command(f.Program, "serve")
	cmd.Stdout, cmd.Stderr = f.Log, f.Log
	cmd.Env = append(f.Environment, "MILLRACE_HTTP__ADDR="+r.API, "MILLRACE_HEALTH__ADDR="+r.Health) //nolint:gocritic // each replica has its own

	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting replica %d: %w", r.Name, err)
	}

	r.process = cmd.Process
	f.Running = append(f.Running, r)

	go func() {
		r.failed = cmd.Wait()

		if !r.expected.Load() {
			f.Died.Add(1)
		}

		close(r.ended)
	}()

	return r, nil
}

// Ended is closed when the replica's process has ended.
func (r *Replica) Ended() <-chan struct{} { return r.ended }

// Freeze stops the process without ending it, until Thaw.
func (r *Replica) Freeze() error { return r.process.Signal(syscall.SIGSTOP) }

// Thaw continues a process that Freeze has stopped.
func (r *Replica) Thaw() error { return r.process.Signal(syscall.SIGCONT) }

// Ready waits until the replica is ready.
func (r *Replica) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("a replica was not ready within "+readyTimeout.String()))
	defer cancel()

	for {
		answer, err := http.Get("http://" + r.Health + "/readyz") //nolint:noctx // our own process
		if err == nil {
			_ = answer.Body.Close()

			if answer.StatusCode == http.StatusOK {
				return nil
			}
		}

		select {
		case <-r.ended:
			return fmt.Errorf("replica %d ended: %w", r.Name, r.failed)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends a replica with SIGKILL.
func (f *Fleet) Kill(at int) {
	r := f.take(at)
	r.expected.Store(true)
	_ = r.process.Kill()

	<-r.ended
}

// Stop ends a replica as an orchestrator does, and returns once it has drained.
func (f *Fleet) Stop(at int) error {
	r := f.take(at)
	r.expected.Store(true)

	if err := r.process.Signal(syscall.SIGTERM); err != nil {
		return err
	}

	select {
	case <-r.ended:
		if r.failed != nil {
			return fmt.Errorf("replica %d did not drain: %w", r.Name, r.failed)
		}

		return nil
	case <-time.After(stopTimeout):
		_ = r.process.Kill()

		return fmt.Errorf("replica %d did not drain within %s", r.Name, stopTimeout)
	}
}

func (f *Fleet) take(at int) *Replica {
	r := f.Running[at]
	f.Running = append(f.Running[:at:at], f.Running[at+1:]...)

	return r
}

// KillAll ends all replicas with SIGKILL.
func (f *Fleet) KillAll() {
	for len(f.Running) > 0 {
		f.Kill(0)
	}
}
