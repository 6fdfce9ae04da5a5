// Command millrace runs the service and works on what it keeps.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millracehq/millrace/internal/engine/operate"
)

// Exit codes, as `millrace help` lists them.
const (
	exitFailure  = operate.ExitFailure
	exitUsage    = operate.ExitUsage
	exitNotFound = operate.ExitNotFound
	exitRejected = operate.ExitRejected
)

// version is set when the program is built: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	stopping := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		stopping = append(stopping, syscall.SIGHUP)
	}

	ctx, stop := signal.NotifyContext(context.Background(), stopping...)

	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()

	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake in the arguments or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errRejected says that publish rejected some messages; it has listed them.
var errRejected = errors.New("some messages were rejected and not published")

// errRefused says that requeue refused some messages; it has listed them.
var errRefused = errors.New("some messages were refused and stay stopped")

func exitCode(err error) int {
	if _, usage := errors.AsType[usageError](err); usage {
		return exitUsage
	}

	if errors.Is(err, errRejected) || errors.Is(err, errRefused) {
		return exitRejected
	}

	return operate.OutcomeOf(err).Exit
}
