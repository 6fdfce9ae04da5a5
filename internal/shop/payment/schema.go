package payment

import "github.com/danielgtaylor/huma/v2"

// TransformSchema implements huma.SchemaTransformer: what is required depends on the
// outcome.
func (Reported) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	outcome := func(required []string, outcomes ...Report) *huma.Schema {
		is := &huma.Schema{Type: huma.TypeString}
		for _, o := range outcomes {
			is.Enum = append(is.Enum, string(o))
		}

		return &huma.Schema{Required: required, Properties: map[string]*huma.Schema{"outcome": is}}
	}

	s.OneOf = []*huma.Schema{
		outcome([]string{"transaction_id"}, ReportCaptured),
		outcome([]string{"reason"}, ReportDeclined),
		outcome([]string{"transaction_id", "refund_id"}, ReportRefunded),
		outcome([]string{"transaction_id", "refund_id", "reason"}, ReportRefundFailed),
		outcome([]string{"transaction_id", "reason"}, ReportDisputed),
	}

	return s
}
