package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
)

func newFailedRequeue(opts *options) *cobra.Command {
	var (
		pace failed.Pace
		w    wait
	)

	return act(opts, &cobra.Command{
		Use: "requeue [ID...]", Short: "Retry stopped messages, in order of arrival for each key",
		Long: `Retry stopped messages, in order of arrival for each key. Only the consumer that failed
receives them. Edited messages are retried with the edited payload. Messages keep
their ids, so none is applied twice.

A message is refused and stays stopped if
- the consumer would reject its payload: edit or discard it
- an older message with its key is stopped: --out-of-order requeues it anyway
- it was overtaken: later messages with its key have been applied since it stopped, and
  it may overwrite what they did. ` + "`millrace failed show`" + ` lists them; --overtaken
  requeues it anyway

Ctrl-C stops after the current message; run the same command again to continue.

--wait waits until each requeued message has been tried, and groups those that failed
again by cause. Ctrl-C then ends the wait; the messages are still tried.

Exit code 4 if messages were refused because of their payload; 1 if others remain
stopped or, with --wait, if some failed again or were not tried in time.`,
		Example: `  millrace failed requeue 17 18
  millrace failed requeue 17 --overtaken --wait --why "Berlin is right"
  millrace failed requeue --group 4be1a2c09f3d --rate 50 --why "fixed in 1.4.2"`,
		PreRunE: func(*cobra.Command, []string) error {
			if pace.PerSecond < 0 {
				return event.Errorf(event.Invalid, "--rate: is %d, expected 0 or more", pace.PerSecond)
			}

			return nil
		},
	}, "requeued", &pace, &w, func(c *call, f failed.Filter, pace failed.Pace) (failed.Outcome, error) {
		return c.Failed.Requeue(c.ctx, f, c.by, pace, c.Router.Check)
	}, words(&pace), w.flags,
		func(_ *options, flags *pflag.FlagSet) {
			flags.IntVar(&pace.PerSecond, "rate", 0, "requeue at most this many per second; 0 is unlimited")
		})
}

// words adds the flags that explicitly allow what a requeue otherwise refuses.
func words(pace *failed.Pace) flag {
	return func(o *options, flags *pflag.FlagSet) {
		yes(&pace.OutOfOrder, "out-of-order", "also requeue messages that follow an older stopped one with the same key")(o, flags)
		yes(&pace.Overtaken, "overtaken", "also requeue messages that were overtaken by later ones with the same key")(o, flags)
	}
}
