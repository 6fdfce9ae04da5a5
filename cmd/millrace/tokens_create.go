package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/access"
)

// created is a new token.
type created struct {
	Name  string      `json:"name"`
	Role  access.Role `json:"role"`
	Token string      `json:"token"`
}

func newTokensCreate(opts *options) *cobra.Command {
	var (
		role string
		life time.Duration
	)

	return operation(opts, &cobra.Command{
		Use: "create NAME", Short: "Create an operator API token and print it once",
		Long: `Create an operator API token and print it. It cannot be shown again. Actions are
recorded under its name, so names cannot be reused. A viewer can read everything but
personal data; an operator can read everything and act; an admin can also erase users.`,
		Example: "  millrace tokens create ci-deploy --role operator --for 720h",
	}, func(c *call) error {
		secret, err := access.CreateToken(c.ctx, c.Pool, c.args[0], access.Role(role), life, c.by.Who)
		if err != nil {
			return err
		}

		return c.print(created{c.args[0], access.Role(role), secret}, func(w io.Writer) { fmt.Fprintln(w, secret) })
	}, text(&role, "role", string(access.Viewer), "role of the token: viewer, operator or admin"), func(o *options, flags *pflag.FlagSet) {
		flags.DurationVar(&life, "for", 90*24*time.Hour, "expire the token after this long")
		flags.StringVar(&o.by.Who, "by", osUser(), "record this name as the creator")
	})
}
