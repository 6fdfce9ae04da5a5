package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/event"
)

func newConfig(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "config", Short: "Print the effective configuration without secrets, and validate it", Example: "  millrace config --config production.yaml",
	}, func(c *call) error {
		cfg, err := opts.load()
		if err != nil {
			return err
		}

		text, err := config.Print(cfg)
		if err != nil {
			return err
		}

		if c.json {
			err = c.print(config.Redacted(cfg), nil)
		} else {
			_, err = fmt.Fprint(c.out(), text)
		}

		if err != nil {
			return err
		}

		if err := cfg.Validate(); err != nil {
			return event.Errorf(event.Invalid, "invalid configuration:\n%v", err)
		}

		if err := cfg.Warn(); err != nil {
			fmt.Fprintln(c.cmd.ErrOrStderr(), "warning:", err)
		}

		return nil
	})
}
