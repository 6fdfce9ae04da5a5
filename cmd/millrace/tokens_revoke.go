package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/access"
)

// revoked is the outcome of a revocation.
type revoked struct {
	Name string `json:"name"`
	// Changed is false if the token was already revoked.
	Changed bool `json:"changed"`
}

func newTokensRevoke(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "revoke NAME", Short: "Revoke an operator API token", Example: "  millrace tokens revoke ci-deploy",
	}, func(c *call) error {
		changed, err := access.RevokeToken(c.ctx, c.Pool, c.args[0], c.by.Who)
		if err != nil {
			return err
		}

		return c.print(revoked{c.args[0], changed}, func(w io.Writer) {
			if changed {
				fmt.Fprintf(w, "revoked %s\n", oneLine(c.args[0], maxCell))
			} else {
				fmt.Fprintf(w, "%s was already revoked\n", oneLine(c.args[0], maxCell))
			}
		})
	}, func(o *options, flags *pflag.FlagSet) {
		flags.StringVar(&o.by.Who, "by", osUser(), "record this name as the operator")
	})
}
