package handover

import "context"

func start(ctx context.Context, cfg Config) (*Generation, error) {
	return startOrTakeOver(ctx, cfg)
}
