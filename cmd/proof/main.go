// Command proof shows that nothing is lost, applied twice or out of order, whatever dies.
// It starts its own Postgres and brokers, runs replicas of the service on them, sends
// messages, and compares its own record of them with the tables and the topics. `make`
// lists the targets that run it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millracehq/millrace/cmd/proof/chaos"
	"github.com/millracehq/millrace/cmd/proof/crash"
	"github.com/millracehq/millrace/cmd/proof/mutate"
	"github.com/millracehq/millrace/cmd/proof/soak"
)

// commands are the ways to run the proof, in the order of the help.
var commands = []struct {
	name, help string
	run        func(ctx context.Context, args []string) error
}{
	{"soak", "kill and rebalance replicas under load", soak.Kill},
	{"chaos", "run replicas while everything around them fails, as a seed decides", chaos.Main},
	{"check", "check a database with the record of a run", chaos.Check},
	{"crash", "kill the service at each moment at which its death could lose something", crash.Command},
	{"mutations", "put bugs into the service and show that the proof finds them", mutate.Command},
	{"upgrade", "replace replicas of the previous release under load", soak.Upgrade},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])

	stop()

	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "proof:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	for _, c := range commands {
		if len(args) > 0 && args[0] == c.name {
			return c.run(ctx, args[1:])
		}
	}

	fmt.Fprintln(os.Stderr, "usage: proof COMMAND [FLAG]...; `proof COMMAND -h` lists the flags")

	for _, c := range commands {
		fmt.Fprintf(os.Stderr, "  %-10s %s\n", c.name, c.help)
	}

	return flag.ErrHelp
}
