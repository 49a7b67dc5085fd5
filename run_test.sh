#!/usr/bin/env bash
# Samples from the shipped weights in every --test_mode but edit, in about two minutes on two CPU cores:   bash run_test.sh
# To use your own network or other settings, edit this file.
set -eu
MODEL_PATH=${MODEL_PATH:-checkpoints/fashion_mnist.safetensors}  # or your train_results/<name>/<name>.pt
DIGITS=checkpoints/digits.safetensors                            # its real pictures are in scikit-learn: no download
SAMPLE_NUM=49                                                    # samples; the interpolations show sqrt(49) = 7 pairs
SEED=0
SAVE_DIR=results
# A published checkpoint, which has no recipe, needs --image_size. If it was not trained with 1000 timesteps and
# cosine betas, it also needs --training_timestep_num and --beta_schedule.

# new pictures, with two samplers: METHOD_STEPS_ETA
python test_solver.py --model_path "$MODEL_PATH" --test_mode random_gen \
    --sample_info DPMpp_10_0p0 DDIM_50_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# classes by name, and how strongly the samples follow them
python test_solver.py --model_path checkpoints/cifar10.safetensors --test_mode random_gen --labels frog ship horse --guidance 2 \
    --sample_info UniPC_10_0p0 --sample_num 30 --seed $SEED --save_dir $SAVE_DIR

# one table: every method with 10, 20 and 50 steps, all from the same noise
python test_solver.py --model_path $DIGITS --test_mode compare --seed $SEED --save_dir $SAVE_DIR \
    --sample_info {NaiveDDPM,DDPM,DDIM,DPMpp}_{10,20,50}_0p0

# from one real picture to another, through noise (--interp_mode lerp, the default)
python test_solver.py --model_path $DIGITS --test_mode interpolate \
    --sample_info DDPM_100_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# all four interpolation modes (redrawn is a common mistake), and how even the steps of each are
python test_solver.py --model_path $DIGITS --test_mode interpolate --interp_mode lerp slerp ddim redrawn \
    --sample_info DDIM_50_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# a hole in real pictures, filled in three ways
python test_solver.py --model_path $DIGITS --test_mode inpaint --split test --mask_box 2 2 4 4 \
    --sample_info DDPM_50_0p0 --sample_num 3 --seed $SEED --save_dir $SAVE_DIR

# numbers that compare 300 samples with real pictures
python test_solver.py --model_path $DIGITS --test_mode evaluate --sample_num 300 --seed $SEED --save_dir $SAVE_DIR
