package main

import "github.com/spf13/cobra"

func newServe(opts *options) *cobra.Command {
	return command(opts, &cobra.Command{
		Use: "serve", Short: "Run the service",
		Long: `Run the service. SIGINT or SIGTERM drains it: it stops taking messages, finishes
those in hand and publishes what they caused. A second signal stops it at once.`,
		Example: "  millrace serve --config production.yaml",
	}, func(c *call) error {
		cfg, err := opts.load()
		if err != nil {
			return err
		}

		service, release, err := assemble(cfg)
		if err != nil {
			return err
		}
		defer release()

		return service.Run(c.ctx, nil)
	})
}
