#pragma once
// Every key of the job file, once: name, constraint, help. Reader, overrides, printer, explain, JSON Schema and the
// range checks of config.json are visitors of this one walk.
//
// A visitor has   void section(const char* name, const char* help);
//                 void field(const Key& key, T& value);   for each T below, called for the section last named.
// T: bool, int, int64, uint64, double, string, vector<double>, vector<DataSource>.

#include "lib/config/config.h"
#include "lib/config/key.h"
#include "lib/config/model_fields.h"

namespace dstrain {

// The numbers of an entry of data.train or data.eval.
inline const Key kSourceWeight{.name = "weight", .help = "share of the samples", .min = 1e-6, .max = 1e6};
inline const Key kSourceEpochs{.name = "epochs", .help = "reads of the source", .min = 0, .max = 1e6, .open_min = true};

// A key that the design names and that this version does not have, so that the message is better than "unknown".
struct AbsentKey {
  const char* path;
  const char* feature;
};
inline constexpr AbsentKey kAbsentKeys[] = {
    {"optimizer.shard", "sharded optimizer state"},
};

template <class C, class V>
void visit_fields(C& c, V& v) {
  const char* const no_context = "context parallelism is not in this version";

  v.section("run", "the run: its name, place and machine");
  v.field(Key{.name = "name", .help = "name of the run, shown in logs"}, c.run.name);
  v.field(Key{.name = "dir", .help = "run directory, relative to where dstrain starts", .required = true}, c.run.dir);
  v.field(Key{.name = "seed", .help = "seed of initial weights, shuffling and dropout"}, c.run.seed);
  v.field(Key{.name = "device",
              .help = "where ops run; auto takes a GPU if there is one",
              .choices = {"auto", "cpu", "cuda"}},
          c.run.device);
  v.field(Key{.name = "threads",
              .help = "threads a rank; 0: the cores of the host divided by its ranks",
              .min = 0,
              .max = 4096},
          c.run.threads);
  v.field(Key{.name = "deterministic",
              .help = "same job, layout and processor: same bits; false lets CUDA take faster kernels without that"},
          c.run.deterministic);

  visit_model_fields(c, v);

  v.section("data", "tokenizer and token files; paths are relative to where dstrain starts");
  v.field(Key{.name = "tokenizer", .help = "tokenizer.json; its hash must match the token files"}, c.data.tokenizer);
  v.field(Key{.name = "train",
              .help = "token files to train on: paths, globs or {path, weight, epochs}; weights are shares of "
                      "the samples, epochs is how often a source may be read"},
          c.data.train);
  v.field(Key{.name = "eval", .help = "held-out token files, as data.train; weights need eval.samples"}, c.data.eval);
  v.field(Key{.name = "document_mask",
              .help = "attention and positions stop at the borders of documents, and no token is predicted across one"},
          c.data.document_mask);

  v.section("training", "length of the run and size of a step");
  v.field(Key{.name = "steps", .help = "optimizer steps", .required = true, .min = 1, .max = 1e12}, c.training.steps);
  v.field(Key{.name = "sequence_length", .help = "tokens of a sample", .required = true, .min = 1, .max = 16777216},
          c.training.sequence_length);
  v.field(Key{.name = "global_batch_size",
              .help = "samples a step, over all ranks and micro-batches",
              .required = true,
              .min = 1,
              .max = 16777216},
          c.training.global_batch_size);
  v.field(Key{.name = "micro_batch_size",
              .help = "samples of one forward on one data rank",
              .required = true,
              .min = 1,
              .max = 1048576},
          c.training.micro_batch_size);

  v.section("parallel", "how ranks share the work; the product is the number of ranks");
  v.field(Key{.name = "data", .help = "replicas of the model; 0: what is left of the ranks", .min = 0, .max = 1048576},
          c.parallel.data);
  v.field(Key{.name = "tensor", .help = "ranks that share each layer", .min = 1, .max = 65536}, c.parallel.tensor);
  v.field(Key{.name = "context", .help = "ranks that share each sequence", .min = 1, .max = 1, .only = no_context},
          c.parallel.context);
  v.field(Key{.name = "pipeline", .help = "stages that the layers are split into", .min = 1, .max = 10000},
          c.parallel.pipeline);
  v.field(Key{.name = "expert",
              .help = "data ranks that share the experts of a layer; they are replicated over the others",
              .min = 1,
              .max = 1024},
          c.parallel.expert);
  v.field(Key{.name = "schedule", .help = "order of micro-batches in the pipeline", .choices = {"gpipe"}},
          c.parallel.schedule);
  v.field(Key{.name = "bucket_bytes", .help = "bytes of a gradient bucket", .min = 4096, .max = 1099511627776.0},
          c.parallel.bucket_bytes);

  v.section("moe", "training of a mixture of experts");
  v.field(Key{.name = "bias_update_rate",
              .help = "step of each expert's balancing bias, once an optimizer step; 0: biases stay",
              .min = 0,
              .max = 1,
              .model_type = "deepseek_v3"},
          c.moe.bias_update_rate);
  v.field(Key{.name = "balance_loss_alpha",
              .help = "weight of the sequence-wise balance loss; 0: none",
              .min = 0,
              .max = 1e3,
              .model_type = kDeepseek},
          c.moe.balance_loss_alpha);
  v.field(
      Key{.name = "receive_factor",
          .help = "parallel.expert: room for tokens from other ranks, in shares of an equal load; when a rank would "
                  "get more, the tokens go in parts",
          .min = 1,
          .max = 1024,
          .model_type = kDeepseek},
      c.moe.receive_factor);

  v.section("mtp",
            "training of multi-token prediction: the loss is main + weight * mean of the further tokens' losses");
  v.field(Key{.name = "input",
              .help = "what a module takes of the one before it: post_norm, its state after the norm in front of the "
                      "head; pre_norm, before that norm",
              .choices = {"post_norm", "pre_norm"},
              .model_type = "deepseek_v3"},
          c.mtp.input);
  v.field(Key{.name = "loss_weight",
              .help = "weight of the further tokens' mean loss, and of their layers' balance loss",
              .min = 0,
              .max = 1e3,
              .model_type = "deepseek_v3"},
          c.mtp.loss_weight);
  v.field(Key{.name = "loss_weight_after",
              .help = "the same once change_after_tokens are trained on",
              .min = 0,
              .max = 1e3,
              .model_type = "deepseek_v3"},
          c.mtp.loss_weight_after);
  v.field(Key{.name = "change_after_tokens",
              .help = "tokens predicted since the run began after which loss_weight_after holds; 0: never",
              .min = 0,
              .max = 1e18,
              .model_type = "deepseek_v3"},
          c.mtp.change_after_tokens);

  v.section("optimizer", "the update");
  v.field(Key{.name = "type", .help = "update rule", .choices = {"adamw"}}, c.optimizer.type);
  v.field(Key{.name = "lr", .help = "peak learning rate", .min = 0, .max = 1000}, c.optimizer.lr);
  v.field(
      Key{.name = "betas", .help = "decay rates of the first and second moment", .min = 0, .max = 0.99999, .count = 2},
      c.optimizer.betas);
  v.field(Key{.name = "eps", .help = "added to the root of the second moment", .min = 1e-30, .max = 1},
          c.optimizer.eps);
  v.field(Key{.name = "weight_decay", .help = "decoupled decay of matrices; vectors have none", .min = 0, .max = 100},
          c.optimizer.weight_decay);
  v.field(Key{.name = "clip_grad_norm", .help = "largest global gradient norm; 0: no clipping", .min = 0, .max = 1e30},
          c.optimizer.clip_grad_norm);

  v.section("lr_schedule", "learning rate by step");
  v.field(Key{.name = "type", .help = "shape after the warm-up", .choices = {"constant", "cosine", "wsd"}},
          c.lr_schedule.type);
  v.field(Key{.name = "warmup_steps", .help = "steps in which lr rises linearly from 0", .min = 0, .max = 1e12},
          c.lr_schedule.warmup_steps);
  v.field(Key{.name = "decay_steps", .help = "wsd: the last steps, in which lr falls to min_lr", .min = 0, .max = 1e12},
          c.lr_schedule.decay_steps);
  v.field(Key{.name = "min_lr", .help = "learning rate at the end", .min = 0, .max = 1000}, c.lr_schedule.min_lr);

  v.section("precision", "number formats");
  v.field(Key{.name = "compute",
              .help = "format of weights and activations in ops; moments are float32",
              .choices = {"float32", "bfloat16"}},
          c.precision.compute);
  v.field(
      Key{.name = "master",
          .help = "format of the weights that the optimizer updates; split: the bfloat16 weight and its 16 low bits, "
                  "exact float32 in two bytes a parameter less",
          .choices = {"float32", "split"}},
      c.precision.master);
  v.field(
      Key{.name = "gradients",
          .help = "format of the gradients of linear layers and experts, which bfloat16 rounds once; a step is then "
                  "one micro-batch. Others are float32",
          .choices = {"float32", "bfloat16"}},
      c.precision.gradients);
  v.field(Key{.name = "tf32", .help = "CUDA: float32 matmuls may round their inputs to TF32"}, c.precision.tf32);

  v.section("cuda", "how ops run on NVIDIA GPUs");
  v.field(Key{.name = "graphs",
              .help = "record a micro-batch's forward and backward once and start them as CUDA graphs; auto: where "
                      "every rank has a GPU of its own",
              .choices = {"auto", "always", "never"}},
          c.cuda.graphs);
  v.field(
      Key{.name = "attention",
          .help = "who computes attention; auto: cuDNN for bfloat16 where it can, but on a Hopper, where the run is "
                  "not deterministic, our own gradient of heads of 64 and 128; else our own kernels",
          .choices = {"auto", "cudnn", "native"}},
      c.cuda.attention);
  v.field(Key{.name = "tune", .help = "measure the matmul library's alternatives at start"}, c.cuda.tune);
  v.field(Key{.name = "nvls", .help = "let NCCL use NVLink multicast"}, c.cuda.nvls);

  v.section("eval", "evaluation on held-out data");
  v.field(Key{.name = "every", .help = "steps between evaluations; 0: never", .min = 0, .max = 1e12}, c.eval.every);
  v.field(Key{.name = "samples", .help = "samples of one evaluation; 0: all held-out data", .min = 0, .max = 1e12},
          c.eval.samples);

  v.section("guard", "what stops a run that goes wrong");
  v.field(
      Key{.name = "on_nonfinite",
          .help = "a loss, gradient norm or weight that is not finite: abort, skip the update, or go back to the last "
                  "checkpoint and pass over the batch",
          .choices = {"abort", "skip", "rollback"}},
      c.guard.on_nonfinite);
  v.field(
      Key{.name = "on_spike",
          .help = "a loss or gradient norm far above the last 128 steps': warn, skip the update, go back to the last "
                  "checkpoint and pass over the batch, or abort",
          .choices = {"warn", "skip", "rollback", "abort"}},
      c.guard.on_spike);
  v.field(Key{.name = "spike_z",
              .help = "a spike lies this many robust standard deviations above the median",
              .min = 1,
              .max = 1e6},
          c.guard.spike_z);
  v.field(Key{.name = "max_skips", .help = "updates skipped in a row, then a rollback", .min = 0, .max = 1e9},
          c.guard.max_skips);
  v.field(Key{.name = "max_rollbacks",
              .help = "rollbacks without 128 good steps in between, then the run ends with exit code 12",
              .min = 0,
              .max = 1e9},
          c.guard.max_rollbacks);
  v.field(Key{.name = "recompute_every",
              .help = "steps between checks that a micro-batch run again has the same bits; 0: never; needs "
                      "run.deterministic",
              .min = 0,
              .max = 1e12},
          c.guard.recompute_every);
  v.field(Key{.name = "replica_hash_every",
              .help = "steps between checks that data ranks hold the same weights and moments; 0: never",
              .min = 0,
              .max = 1e12},
          c.guard.replica_hash_every);

  v.section("checkpoint", "saving");
  v.field(Key{.name = "every", .help = "steps between checkpoints; 0: only at the end", .min = 0, .max = 1e12},
          c.checkpoint.every);
  v.field(Key{.name = "async", .help = "write on another thread while training goes on"}, c.checkpoint.async);
  v.field(Key{.name = "keep",
              .help = "newest checkpoints kept; the newest two that are verified stay in any case",
              .min = 1,
              .max = 1000000},
          c.checkpoint.keep);
  v.field(
      Key{.name = "verify",
          .help = "before a checkpoint counts: written, its writers hash what they wrote; readback, other ranks read "
                  "it again and compare, for network file systems",
          .choices = {"written", "readback"}},
      c.checkpoint.verify);
  v.field(Key{.name = "timeout",
              .help = "seconds after which a save is given up, so that training goes on beside storage that does not "
                      "answer; 0: never",
              .min = 0,
              .max = 1e9},
          c.checkpoint.timeout);
  v.field(Key{.name = "device_buffer_bytes",
              .help = "GPU memory in which a save keeps what the link to the host would not take within a forward and "
                      "backward, so that the next update need not wait; 0: none, and more than the state is not taken",
              .min = 0,
              .max = 1e15},
          c.checkpoint.device_buffer_bytes);

  v.section("watchdog", "when a rank counts as lost, and the run ends for all ranks with exit code 11");
  v.field(Key{.name = "limit",
              .help = "seconds without progress of a rank in a step; 0: 60, or 10 median steps where that is more. A "
                      "rank without any sign of life is lost after so long too, after 25 s at most",
              .min = 0,
              .max = 1e9},
          c.watchdog.limit);
  v.field(Key{.name = "start",
              .help = "seconds without progress at the start, up to the end of the first step",
              .min = 1,
              .max = 1e9},
          c.watchdog.start);
  v.field(Key{.name = "evaluation", .help = "seconds without progress in an evaluation", .min = 1, .max = 1e9},
          c.watchdog.evaluation);
  v.field(Key{.name = "save", .help = "seconds that training may wait for a checkpoint", .min = 1, .max = 1e9},
          c.watchdog.save);
  v.field(Key{.name = "grace",
              .help = "seconds from a stop signal to the kill, by the queue's rules; a warning when a stop is "
                      "predicted to take more than half of it",
              .min = 0,
              .max = 1e9},
          c.watchdog.grace);

  v.section("debug", "slow modes that find where a run goes wrong");
  v.field(Key{.name = "blocking",
              .help = "CUDA: wait for every op and name the one that failed, with its shapes, layer and micro-batch"},
          c.debug.blocking);
  v.field(Key{.name = "check_finite", .help = "stop at the first op whose output is not finite, and name it"},
          c.debug.check_finite);
  v.field(Key{.name = "collectives",
              .help = "ranks compare every message's operation, bytes and dtype before it is sent; not over NCCL"},
          c.debug.collectives);

  v.section("profile", "a trace of some steps");
  v.field(Key{.name = "steps",
              .help = "[first, last] step, written to trace.json in the run directory, for a Chrome trace viewer",
              .min = 1,
              .max = 1e12,
              .count = 2,
              .may_be_empty = true},
          c.profile.steps);

  v.section("observe", "what else a run writes for people to look at");
  v.field(
      Key{.name = "tensorboard", .help = "write every metric to event files under tensorboard/ in the run directory"},
      c.observe.tensorboard);
  v.field(Key{.name = "expert_tokens_every",
              .help = "steps between lines of the metrics that hold the tokens of every single expert; 0: never",
              .min = 0,
              .max = 1e12,
              .model_type = kDeepseek},
          c.observe.expert_tokens_every);
}

}  // namespace dstrain
