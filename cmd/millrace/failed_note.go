package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newFailedNote(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "note GROUP TEXT", Short: "Note something about a group of failed messages, for whoever looks next",
		Long: `Note something about a group of failed messages. "failed groups" and the console show
the newest note, with who and when; an empty text removes it. Earlier notes are in
"millrace activity --action noted".`,
		Example: `  millrace failed note dd472b78fe2c "the shop sends 0 since Monday; ask Ada before you replay"`,
	}, func(c *call) error {
		by := c.by
		by.Why = c.args[1]

		if err := c.Operator.Note(c.ctx, c.args[0], by); err != nil {
			return err
		}

		return c.print(map[string]string{"group": c.args[0], "note": by.Why}, func(w io.Writer) {
			if by.Why == "" {
				fmt.Fprintf(w, "removed the note on group %s\n", c.args[0])
			} else {
				fmt.Fprintf(w, "noted on group %s\n", c.args[0])
			}
		})
	}, func(o *options, flags *pflag.FlagSet) {
		flags.StringVar(&o.by.Who, "by", osUser(), "record this name as the operator")
	})
}
