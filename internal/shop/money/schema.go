package money

import "github.com/danielgtaylor/huma/v2"

// Schema implements huma.SchemaProvider: a number, as it is written, or a string, which is
// also read.
func (Amount) Schema(huma.Registry) *huma.Schema {
	zero, limit, length := 0.0, 1e18, maxText

	return &huma.Schema{AnyOf: []*huma.Schema{
		{Type: huma.TypeNumber, Minimum: &zero, ExclusiveMaximum: &limit},
		{Type: huma.TypeString, MaxLength: &length, Pattern: `^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$`},
	}}
}
